"""Matching of probes with a gallery, in bounded memory, with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError, DataError, MissingExtraError, first_line
from qgait_ptq.gait.metric_names import check_metric
from qgait_ptq.system.integers import check_integer

Index = Literal["exact", "faiss"]
CANDIDATES_FOR_EACH = 20  # candidates from faiss for each of the top k
MORE_CANDIDATES = 8  # candidates beyond the top k; products order nearly equal distances at random
COMPARED_DIRECTLY = 64  # the nearest candidates of a probe, whose distances are computed from differences
TEMPORARIES = 4  # arrays of the size of a block of differences
LARGEST_VALUE = 1e15  # of an embedding; sums of larger squares can exceed float32
LARGEST_ROUNDING = 1e-3  # of the squared length of a normalised vector
BLOCK_BYTES = 64 * 2**20  # size of one block of distances


@dataclass(frozen=True)
class Matches:
    """The nearest gallery sequences of each probe, nearest first. Ties keep the order of the gallery.

    Attributes:
        indices: indices into the gallery, ``[n, k]`` int64.
        distances: distances to these, ``[n, k]`` float32.
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
    """Find the nearest gallery sequences of each probe.

    Products of matrices choose candidates. The distances of the nearest `COMPARED_DIRECTLY` are computed from
    differences of embeddings, so they do not depend on the other sequences, on the index or on blocks. Those
    of further matches come from the products.

    Args:
        gallery: embeddings ``[m, parts, channels]``, or one embedding ``[parts, channels]``.
        probes: embeddings ``[n, parts, channels]``, or one embedding ``[parts, channels]``.
        top_k: matches for each probe; fewer if the gallery is smaller.
        metric: ``euclidean`` or ``cosine``, averaged over parts as in evaluation.
        index: ``exact`` compares each probe with the complete gallery. ``faiss`` selects
            `CANDIDATES_FOR_EACH` times top_k candidates first. Its distances are the same, but it can miss
            a match.
        block_bytes: largest size of a block of distances, and of differences of embeddings.

    Raises:
        DataError: the gallery is empty, shapes differ, or values are not finite or beyond `LARGEST_VALUE`.
        ConfigError: top_k is not an integer of at least one, or the metric or the index is unknown.
        MissingExtraError: faiss is not installed.
    """
    top_k = check_integer(top_k, "top_k", 1)
    check_metric(metric)
    gallery, probes = _as_embeddings(gallery, "the gallery"), _as_embeddings(probes, "the probes")
    if gallery.shape[1:] != probes.shape[1:]:
        raise DataError(
            f"embeddings [parts, channels] are {list(gallery.shape[1:])} in the gallery and "
            f"{list(probes.shape[1:])} in the probes, so they come from different networks"
        )
    if len(gallery) == 0:
        raise DataError("the gallery is empty; add at least one embedding")
    top_k = min(top_k, len(gallery))
    if index == "exact":
        return _match_exactly(gallery, probes, top_k, metric, block_bytes)
    if index == "faiss":
        return _match_with_faiss(gallery, probes, top_k, metric, block_bytes)
    raise ConfigError(f"unknown index {index!r}; choose exact or faiss")


def _approximate_distances(
    gallery: NDArray[np.float32], probes: NDArray[np.float32], metric: str, origin: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the distances ``[n, m]`` of probes to a gallery, summed over parts, by products.

    Embeddings in nearly one direction would lose their digits in the difference of products, so they are
    moved to an origin ``[parts, channels]`` among them. `gait.metrics.part_distances` does the same.
    """
    cosine = metric == "cosine"
    if cosine:
        gallery, probes = _normalise(gallery), _normalise(probes)
    total = np.zeros((len(probes), len(gallery)), np.float32)
    for part in range(gallery.shape[1]):
        x, y = probes[:, part], gallery[:, part]
        if cosine:
            total += _lacking(x)[:, None] + _lacking(y)[None]
        x, y = x - origin[part], y - origin[part]
        squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * (x @ y.T)
        squared = np.maximum(squared, 0)
        total += squared / 2 if cosine else np.sqrt(squared)
    return total


def _pair_distances(
    gallery: NDArray[np.float32], probes: NDArray[np.float32], metric: str
) -> NDArray[np.float32]:
    """Return the distances ``[n]`` of pairs of embeddings ``[n, parts, channels]``."""
    if metric == "cosine":
        gallery, probes = _normalise(gallery), _normalise(probes)
        of_parts = np.square(gallery - probes).sum(2) / 2 + _lacking(gallery) + _lacking(probes)
    else:
        of_parts = np.sqrt(np.square(gallery - probes).sum(2))
    return np.asarray(of_parts.mean(1))


def _lacking(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``(1 - ||x||²) / 2`` of normalised vectors: zero, except without a direction.

    ``1 - x·y`` is ``||x - y||² / 2`` and both of these. `gait.metrics.part_distances` does the same.
    """
    half = (1 - np.square(vectors).sum(-1)) / 2
    return np.asarray(np.where(half > LARGEST_ROUNDING, half, np.float32(0)))


def _origin(gallery: NDArray[np.float32], metric: str, block_bytes: int) -> NDArray[np.float32]:
    """Return the mean ``[parts, channels]`` of a gallery, of its directions for the cosine metric."""
    if metric != "cosine":
        return np.asarray(gallery.mean(0))
    rows = max(1, block_bytes // gallery[0].nbytes)
    blocks = range(0, len(gallery), rows)
    total = sum(_normalise(gallery[start : start + rows]).sum(0, dtype=np.float64) for start in blocks)
    return (total / len(gallery)).astype(np.float32)


def _normalise(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(embeddings, axis=2, keepdims=True)
    return np.asarray(embeddings / np.maximum(length, np.float32(1e-12)))


def _as_embeddings(array: NDArray[Any], where: str) -> NDArray[np.float32]:
    try:
        array = np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:  # torch raises the last two
        raise DataError(f"{where}: not an array [n, parts, channels] ({first_line(error)})") from None
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind != "f":
        raise DataError(
            f"{where}: expected float embeddings [n, parts, channels], not {array.dtype} {list(array.shape)}"
        )
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused
        values = array.astype(np.float32, copy=False)
    if values.size and not max(values.max(), -values.min()) <= LARGEST_VALUE:  # also true for NaN
        raise DataError(f"{where}: NaN, infinite values, or values beyond ±{LARGEST_VALUE:g}")
    return values


def _match_exactly(
    gallery: NDArray[np.float32], probes: NDArray[np.float32], top_k: int, metric: str, block_bytes: int
) -> Matches:
    columns = max(1, min(len(gallery), block_bytes // 4))
    rows = max(1, block_bytes // (4 * columns))
    kept = min(len(gallery), top_k + MORE_CANDIDATES)
    origin = _origin(gallery, metric, block_bytes)
    candidates, approximate = (
        np.empty((len(probes), kept), np.int64),
        np.empty((len(probes), kept), np.float32),
    )
    for start in range(0, len(probes), rows):
        block = probes[start : start + rows]
        best, where = np.empty((len(block), 0), np.float32), np.empty((len(block), 0), np.int64)
        for first in range(0, len(gallery), columns):
            distances = _approximate_distances(gallery[first : first + columns], block, metric, origin)
            numbers = np.broadcast_to(np.arange(first, first + distances.shape[1]), distances.shape)
            best, where = np.concatenate([best, distances], 1), np.concatenate([where, numbers], 1)
            best, where = _nearest(best, where, kept)
        candidates[start : start + rows], approximate[start : start + rows] = where, best
    approximate /= np.float32(gallery.shape[1])
    near = min(kept, COMPARED_DIRECTLY)
    matches = _nearest_candidates(gallery, probes, candidates[:, :near], near, metric, block_bytes)
    distances = np.concatenate([matches.distances, approximate[:, near:]], 1)
    numbers = np.concatenate([matches.indices, candidates[:, near:]], 1)
    best, where = _nearest(distances, numbers, top_k)
    return Matches(where, best)


def _nearest_candidates(
    gallery: NDArray[np.float32],
    probes: NDArray[np.float32],
    candidates: NDArray[np.int64],
    top_k: int,
    metric: str,
    block_bytes: int,
) -> Matches:
    """Return the nearest of the candidates ``[n, c]`` of each probe, by distances of pairs."""
    candidates = np.sort(candidates, axis=1)  # ties keep the order of the gallery
    known = candidates.reshape(-1)
    asked = np.repeat(np.arange(len(probes)), candidates.shape[1])
    distances = np.empty(len(known), np.float32)
    pairs = max(1, block_bytes // (4 * TEMPORARIES * gallery[0].size))
    for start in range(0, len(known), pairs):
        block = slice(start, start + pairs)
        distances[block] = _pair_distances(gallery[known[block]], probes[asked[block]], metric)
    best, where = _nearest(distances.reshape(candidates.shape), candidates, top_k)
    return Matches(where, best)


def _nearest(
    distances: NDArray[np.float32], numbers: NDArray[np.int64], top_k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    order = np.argsort(distances, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(numbers, order, 1)


def _match_with_faiss(
    gallery: NDArray[np.float32], probes: NDArray[np.float32], top_k: int, metric: str, block_bytes: int
) -> Matches:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("matching with faiss", "faiss") from None
    origin = _origin(gallery, metric, block_bytes)  # faiss uses products, too
    if metric == "cosine":
        near, asked = _normalise(gallery) - origin, _normalise(probes) - origin
    else:
        near, asked = gallery - origin, probes - origin
    index = faiss.IndexFlatL2(gallery[0].size)
    index.add(np.ascontiguousarray(near.reshape(len(near), -1)))
    proposals = min(len(gallery), CANDIDATES_FOR_EACH * top_k)
    _, proposed = index.search(np.ascontiguousarray(asked.reshape(len(asked), -1)), proposals)
    return _nearest_candidates(gallery, probes, proposed, top_k, metric, block_bytes)
