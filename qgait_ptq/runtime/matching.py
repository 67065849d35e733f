"""Matching: the nearest of a gallery for each probe, in bounded memory, with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError, DataError, MissingExtraError

Index = Literal["exact", "faiss"]
METRICS = ("euclidean", "cosine")
CANDIDATES_FOR_EACH = 20  # that faiss proposes for each of the top k
BLOCK_BYTES = 64 * 2**20  # of one block of distances


@dataclass(frozen=True)
class Matches:
    """The nearest gallery sequences of each probe, nearest first; of equally near ones the first.

    Attributes:
        indices: into the gallery, ``[n, k]`` int64.
        distances: ``[n, k]`` float32.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]


def match(
    gallery: NDArray[Any],
    probes: NDArray[Any],
    top_k: int = 1,
    metric: str = "euclidean",
    index: Index = "exact",
    block_bytes: int = BLOCK_BYTES,
) -> Matches:
    """Find the nearest of a gallery for each probe.

    Args:
        gallery: embeddings ``[m, parts, channels]``, or one of them.
        probes: embeddings ``[n, parts, channels]``, or one of them.
        top_k: how many for each probe; fewer where the gallery is smaller.
        metric: ``euclidean`` or ``cosine``; the mean of it over the parts, as in evaluation.
        index: ``exact`` compares with all. ``faiss`` lets an index of whole embeddings propose
            `CANDIDATES_FOR_EACH` times top_k, and compares with these: distances are the same, but a match
            may be missed.
        block_bytes: bound of a block of distances.

    Raises:
        DataError: an empty gallery, or embeddings of other shapes or not finite.
        ConfigError: top_k below one, or no such metric or index.
        MissingExtraError: faiss is not installed.
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; at least 1 is needed")
    if metric not in METRICS:
        raise ConfigError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    known, asked = _as_embeddings(gallery, "the gallery"), _as_embeddings(probes, "the probes")
    if known.shape[1:] != asked.shape[1:]:
        raise DataError(
            f"the gallery's embeddings are {list(known.shape[1:])}, the probes' {list(asked.shape[1:])}; "
            "they are of different networks"
        )
    if len(known) == 0:
        raise DataError("the gallery is empty")
    top_k = min(top_k, len(known))
    if index == "exact":
        return _match_exactly(known, asked, top_k, metric, block_bytes)
    if index == "faiss":
        return _match_with_faiss(known, asked, top_k, metric)
    raise ConfigError(f"no index {index!r}; there are exact and faiss")


def distances_between(
    gallery: NDArray[np.float32], probes: NDArray[np.float32], metric: str
) -> NDArray[np.float32]:
    """Distances ``[n, m]`` of probes ``[n, parts, channels]`` to a gallery; metrics as of `match`."""
    if metric == "cosine":
        gallery, probes = _normalise(gallery), _normalise(probes)
    total = np.zeros((len(probes), len(gallery)), np.float32)
    for part in range(gallery.shape[1]):
        x, y = probes[:, part], gallery[:, part]
        products = x @ y.T
        if metric == "cosine":
            total += 1 - products
        else:
            squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * products
            total += np.sqrt(np.maximum(squared, 0))
    return total / np.float32(gallery.shape[1])


def _normalise(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(embeddings, axis=2, keepdims=True)
    return np.asarray(embeddings / np.maximum(length, np.float32(1e-12)))


def _as_embeddings(array: NDArray[Any], where: str) -> NDArray[np.float32]:
    array = np.asarray(array)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind != "f":
        raise DataError(
            f"{where}: {array.dtype} {list(array.shape)}, embeddings are float [n, parts, channels]"
        )
    if not np.isfinite(array).all():
        raise DataError(f"{where}: holds NaN or infinite values")
    return array.astype(np.float32, copy=False)


def _match_exactly(
    known: NDArray[np.float32], asked: NDArray[np.float32], top_k: int, metric: str, block_bytes: int
) -> Matches:
    columns = max(1, min(len(known), block_bytes // 4))
    rows = max(1, block_bytes // (4 * columns))
    found = Matches(np.empty((len(asked), top_k), np.int64), np.empty((len(asked), top_k), np.float32))
    for start in range(0, len(asked), rows):
        block = asked[start : start + rows]
        best, where = np.empty((len(block), 0), np.float32), np.empty((len(block), 0), np.int64)
        for first in range(0, len(known), columns):
            distances = distances_between(known[first : first + columns], block, metric)
            numbers = np.broadcast_to(np.arange(first, first + distances.shape[1]), distances.shape)
            best, where = np.concatenate([best, distances], 1), np.concatenate([where, numbers], 1)
            best, where = _nearest(best, where, top_k)
        found.indices[start : start + rows], found.distances[start : start + rows] = where, best
    return found


def _nearest(
    distances: NDArray[np.float32], numbers: NDArray[np.int64], top_k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    order = np.argsort(distances, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(numbers, order, 1)


def _match_with_faiss(
    known: NDArray[np.float32], asked: NDArray[np.float32], top_k: int, metric: str
) -> Matches:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("matching with faiss", "faiss") from None
    if metric == "cosine":
        known, asked = _normalise(known), _normalise(asked)
    index = faiss.IndexFlatL2(known[0].size)
    index.add(np.ascontiguousarray(known.reshape(len(known), -1)))
    proposals = min(len(known), CANDIDATES_FOR_EACH * top_k)
    _, proposed = index.search(np.ascontiguousarray(asked.reshape(len(asked), -1)), proposals)
    found = Matches(np.empty((len(asked), top_k), np.int64), np.empty((len(asked), top_k), np.float32))
    for row, candidates in enumerate(np.sort(proposed, axis=1)):
        distances = distances_between(known[candidates], asked[row : row + 1], metric)
        best, where = _nearest(distances, candidates[None], top_k)
        found.distances[row], found.indices[row] = best[0], where[0]
    return found
