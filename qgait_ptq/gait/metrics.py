"""Ranking metrics over embeddings: distances of parts, rank-k, CMC, mAP and mINP, in bounded memory.

Embeddings are ``[n, c, p]``. The distance of two sequences is the mean over their parts, as in OpenGait's
evaluator. Memory holds only one block of rows of the distance matrix at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from qgait_ptq.gait.metric_names import Metric, check_metric

LARGEST_SQNR = 200.0  # dB
CHUNK_BYTES = 64 * 2**20  # size of one block of distances
DOUBLE_ROWS = 4096  # embeddings that are held in float64, or normalised, at a time
LARGEST_ROUNDING = 1e-3  # of the squared length of a normalised vector


def part_distances(
    probe: Tensor, gallery: Tensor, metric: Metric = "euclidean", origin: Tensor | None = None
) -> Tensor:
    """Return the distances between all probes and all gallery embeddings.

    Squared distances are differences of products. Embeddings in nearly one direction would lose their digits
    there, so they are moved to an origin among them first. The cosine metric does the same with vectors of
    length 1, for which ``1 - cos(x, y) = ||x - y||² / 2``.

    Args:
        probe: probe embeddings ``[n, c, p]``.
        gallery: gallery embeddings ``[m, c, p]``.
        metric: ``euclidean``, the mean over parts of ``sqrt(relu(||x - y||²))``, or ``cosine``, the mean
            over parts of ``1 - cos(x, y)``.
        origin: point ``[c, p]`` that is subtracted from all embeddings; None for `origin_of` the gallery.

    Returns:
        Distances ``[n, m]`` float32.

    Raises:
        ConfigError: the metric is unknown.
    """
    check_metric(metric)
    origin = origin_of(gallery, metric) if origin is None else origin
    total = probe.new_zeros(len(probe), len(gallery))
    parts = probe.shape[2]
    for part in range(parts):
        x, y = probe[:, :, part], gallery[:, :, part]
        if metric == "cosine":
            x, y = normalize(x, dim=1), normalize(y, dim=1)
            total += _lacking(x)[:, None] + _lacking(y)[None]
        x, y = x - origin[:, part], y - origin[:, part]
        squared = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * (x @ y.T)
        squared = squared.clamp_min(0)
        total += squared / 2 if metric == "cosine" else squared.sqrt()
    return total / parts


def _lacking(vectors: Tensor) -> Tensor:
    """Return ``(1 - ||x||²) / 2`` of normalised vectors ``[n, c]``: zero, except without a direction.

    ``1 - x·y`` is ``||x - y||² / 2`` and both of these. They keep the distance at 1 for a vector of zeros.
    """
    half = (1 - vectors.square().sum(1)) / 2
    return half.where(half > LARGEST_ROUNDING, torch.zeros_like(half))


def origin_of(gallery: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Return the point ``[c, p]`` that `part_distances` subtracts, with zeros where it is not finite.

    Args:
        gallery: gallery embeddings ``[m, c, p]``.
        metric: ``euclidean`` for their mean; ``cosine`` for the mean of their directions.
    """
    if metric == "cosine":
        blocks = gallery.split(DOUBLE_ROWS)
        mean = torch.stack([normalize(block, dim=1).sum(0) for block in blocks]).sum(0) / len(gallery)
    else:
        mean = gallery.mean(0)
    return mean.where(mean.isfinite(), torch.zeros_like(mean))


def row_blocks(probes: int, gallery: int, chunk_bytes: int = CHUNK_BYTES) -> list[slice]:
    """Return the blocks of rows of a distance matrix, as slices of the probes.

    Args:
        probes: number of probes.
        gallery: number of gallery sequences.
        chunk_bytes: largest size of a block.
    """
    rows = max(1, chunk_bytes // (4 * max(1, gallery)))
    return [slice(start, min(start + rows, probes)) for start in range(0, probes, rows)]


def distance_rows(
    probe: Tensor,
    gallery: Tensor,
    metric: Metric = "euclidean",
    chunk_bytes: int = CHUNK_BYTES,
    blocks: Sequence[slice] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the distance matrix in blocks of rows.

    Args:
        probe: probe embeddings ``[n, c, p]``.
        gallery: gallery embeddings ``[m, c, p]``.
        metric: ``euclidean`` or ``cosine``; see `part_distances`.
        chunk_bytes: largest size of a block.
        blocks: some of the blocks of `row_blocks`; None for all.

    Yields:
        Slice of the probes, and their distances ``[k, m]``.
    """
    rows = max(1, chunk_bytes // (4 * max(1, len(gallery))))
    columns = max(1, chunk_bytes // (4 * rows))
    origin = origin_of(gallery, metric)  # the same for all blocks
    for block in row_blocks(len(probe), len(gallery), chunk_bytes) if blocks is None else blocks:
        pieces = [
            part_distances(probe[block], gallery[column : column + columns], metric, origin)
            for column in range(0, len(gallery), columns)
        ]
        yield block, torch.cat(pieces, dim=1)


@dataclass(frozen=True)
class Ranking:
    """Quality of the ranking of each probe that has a match in its gallery.

    Attributes:
        match_rank: position (from 0) of the first correct gallery sequence, ``[n]``.
        average_precision: average precision of each probe in [0, 1], ``[n]``.
        inverse_negative_penalty: number of matches over the position of the last (Ye et al. 2021), ``[n]``.
        valid: whether a probe has a match, ``[n]``. Means are over these.
    """

    match_rank: Tensor
    average_precision: Tensor
    inverse_negative_penalty: Tensor
    valid: Tensor

    def rank(self, k: int, *, of_all: bool = False) -> float:
        """Return the share of probes with a correct sequence among the first k, in percent.

        It is 0 if no probe has a match.

        Args:
            k: number of sequences.
            of_all: whether probes without a match count, too, as not recognised.
        """
        found = self.match_rank < k
        if of_all or not bool(self.valid.any()):
            return 100 * float((found & self.valid).double().mean())
        return self._mean(found)

    def mean_average_precision(self) -> float:
        """Return mAP in percent."""
        return self._mean(self.average_precision)

    def mean_inverse_negative_penalty(self) -> float:
        """Return mINP in percent."""
        return self._mean(self.inverse_negative_penalty)

    def cmc(self, longest: int = 20, *, of_all: bool = False) -> list[float]:
        """Return the cumulative match characteristic: rank-1 to rank-`longest` in percent, see `rank`."""
        return [self.rank(k, of_all=of_all) for k in range(1, longest + 1)]

    def _mean(self, values: Tensor) -> float:
        return 100 * float(values[self.valid].double().mean()) if bool(self.valid.any()) else float("nan")


def rank_gallery(distances: Tensor, matches: Tensor, admitted: Tensor | None = None) -> Ranking:
    """Rank the gallery for each probe.

    Average precision is the mean over the correct sequences of the precision at their positions, as in
    OpenGait's and the re-identification evaluators.

    Args:
        distances: distances ``[n, m]``.
        matches: whether probe and gallery sequence show the same identity, bool ``[n, m]``.
        admitted: whether the gallery sequence can be compared with the probe, bool ``[n, m]``; None for all.
    """
    if admitted is not None:
        distances, matches = distances.masked_fill(~admitted, torch.inf), matches & admitted
    order = distances.argsort(dim=1, stable=True)
    hits = matches.gather(1, order)
    hits_so_far = hits.cumsum(1)
    total = hits.sum(1)
    valid = total > 0
    positions = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = (hits_so_far / positions * hits).sum(1) / total.clamp_min(1)
    last_hit = (positions * hits).amax(1)
    return Ranking(
        match_rank=hits.int().argmax(1),
        average_precision=precision,
        inverse_negative_penalty=total / last_hit.clamp_min(1),
        valid=valid,
    )


def single_shot_rank1(distances: Tensor, labels: Tensor, probes: Tensor | None = None) -> float:
    """Return the expected rank-1 in percent over all galleries with one sequence of each identity.

    A gallery sequence p recognises a sequence q of its identity if the sequences of all other identities are
    farther away. If these are drawn at random, the probability is ``Π_j share_j(q, p)``. Here share_j is the
    share of identity j's sequences that are farther from q than p. The result is the exact mean over all
    (q, p). It changes continuously and saturates later than rank-1 against all sequences, so that a few
    identities suffice to compare networks.

    Args:
        distances: distances ``[n, n]``.
        labels: identities ``[n]``, at least two different ones.
        probes: whether a sequence is a probe, bool ``[n]``; None for all. The others are only in galleries.

    Returns:
        Rank-1 in percent; NaN if no identity has two sequences.
    """
    identities = labels.unique()
    member = (labels[None] == identities[:, None]).double()
    counts = member.sum(1)
    recognised: list[Tensor] = []
    for q in torch.arange(len(labels)) if probes is None else torch.nonzero(probes)[:, 0]:
        row = distances[q]
        others = identities != labels[q]
        partners = torch.nonzero((labels == labels[q]) & (torch.arange(len(labels)) != q))[:, 0]
        if len(partners) == 0:
            continue
        farther = (row[None] > row[partners, None]).double()
        share = farther @ member[others].T / counts[others]
        recognised.append(share.prod(1))
    return 100 * float(torch.cat(recognised).mean()) if recognised else float("nan")


def concatenate_rankings(rankings: list[Ranking]) -> Ranking:
    """Join the rankings of blocks of probes."""
    return Ranking(
        match_rank=torch.cat([r.match_rank for r in rankings]),
        average_precision=torch.cat([r.average_precision for r in rankings]),
        inverse_negative_penalty=torch.cat([r.inverse_negative_penalty for r in rankings]),
        valid=torch.cat([r.valid for r in rankings]),
    )


def embedding_sqnr(reference: Tensor, other: Tensor) -> float:
    """Return the SQNR in dB: energy of the reference over energy of the difference.

    Equal embeddings give `LARGEST_SQNR`, so that the result is finite.
    """
    noise, signal = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for original, changed in zip(reference.split(DOUBLE_ROWS), other.split(DOUBLE_ROWS), strict=True):
        noise = noise + (original.double() - changed.double()).square().sum().cpu()
        signal = signal + original.double().square().sum().cpu()
    return decibels(float(signal), float(noise))


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of two energies in dB, between -`LARGEST_SQNR` and `LARGEST_SQNR`.

    Without noise, it is `LARGEST_SQNR`.
    """
    if noise == 0:
        return LARGEST_SQNR
    ratio = signal / noise
    if math.isnan(ratio):
        return ratio
    return max(-LARGEST_SQNR, min(10 * math.log10(ratio), LARGEST_SQNR)) if ratio > 0 else -LARGEST_SQNR


def embedding_cosine(reference: Tensor, other: Tensor) -> Tensor:
    """Return the cosines ``[n]`` between embeddings ``[n, ...]``, with all parts as one vector.

    Two embeddings of zeros are equal: their cosine is 1. A network whose last ReLU lets nothing pass gives
    them for blank silhouettes. The cosine of zeros and anything else is 0.
    """
    pairs = zip(reference.flatten(1).split(DOUBLE_ROWS), other.flatten(1).split(DOUBLE_ROWS), strict=True)
    return torch.cat([_row_cosines(a.double(), b.double()) for a, b in pairs])


def _row_cosines(a: Tensor, b: Tensor) -> Tensor:
    # The default eps of 1e-8 would take short embeddings for zeros.
    cosines = torch.nn.functional.cosine_similarity(a, b, dim=1, eps=torch.finfo(a.dtype).tiny)
    both_zero = ~(a.any(1) | b.any(1))
    return cosines.masked_fill(both_zero, 1.0)
