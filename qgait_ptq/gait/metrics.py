"""Ranking metrics over embeddings: distances of parts, rank-k, CMC, mAP and mINP, in bounded memory.

Embeddings are ``[n, c, p]``; the distance of two sequences is the mean over their parts, as in OpenGait's
evaluator. Galleries are walked in chunks, and only one row block of distances exists at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["euclidean", "cosine"]
LARGEST_SQNR = 200.0  # dB
CHUNK_BYTES = 64 * 2**20  # of one block of distances


def part_distances(probe: Tensor, gallery: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Distances between all probes and all gallery embeddings.

    Args:
        probe: ``[n, c, p]``.
        gallery: ``[m, c, p]``.
        metric: ``euclidean`` is the mean over parts of ``sqrt(relu(||x - y||²))``; ``cosine`` the mean over
            parts of ``1 - cos(x, y)``.

    Returns:
        ``[n, m]`` float32.
    """
    total = probe.new_zeros(len(probe), len(gallery))
    parts = probe.shape[2]
    for part in range(parts):
        x, y = probe[:, :, part], gallery[:, :, part]
        if metric == "cosine":
            x, y = torch.nn.functional.normalize(x, dim=1), torch.nn.functional.normalize(y, dim=1)
            total += 1 - x @ y.T
        else:
            squared = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * (x @ y.T)
            total += squared.clamp_min(0).sqrt()
    return total / parts


def distance_rows(
    probe: Tensor, gallery: Tensor, metric: Metric = "euclidean", chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of the distance matrix.

    Args:
        probe: ``[n, c, p]``.
        gallery: ``[m, c, p]``.
        metric: see `part_distances`.
        chunk_bytes: bound of one block.

    Yields:
        Which probes, and their distances ``[k, m]``.
    """
    rows = max(1, chunk_bytes // (4 * max(1, len(gallery))))
    columns = max(1, chunk_bytes // (4 * rows))
    for start in range(0, len(probe), rows):
        block = slice(start, min(start + rows, len(probe)))
        pieces = [
            part_distances(probe[block], gallery[column : column + columns], metric)
            for column in range(0, len(gallery), columns)
        ]
        yield block, torch.cat(pieces, dim=1)


@dataclass(frozen=True)
class Ranking:
    """Quality of the ranking of each probe that has a match in its gallery.

    Attributes:
        match_rank: position (from 0) of the first correct gallery sequence, ``[n]``.
        average_precision: ``[n]``.
        inverse_negative_penalty: matches over the position of the hardest one (Ye et al. 2021), ``[n]``.
        valid: which probes have a match, ``[n]``; the others count nowhere.
    """

    match_rank: Tensor
    average_precision: Tensor
    inverse_negative_penalty: Tensor
    valid: Tensor

    def rank(self, k: int) -> float:
        """Share of probes, in percent, with a correct sequence among the first k."""
        return self._mean((self.match_rank < k).float())

    def mean_average_precision(self) -> float:
        """MAP in percent."""
        return self._mean(self.average_precision)

    def mean_inverse_negative_penalty(self) -> float:
        """Give mINP in percent."""
        return self._mean(self.inverse_negative_penalty)

    def cmc(self, longest: int = 20) -> list[float]:
        """Cumulative match characteristic: rank-1 to rank-`longest` in percent."""
        return [self.rank(k) for k in range(1, longest + 1)]

    def _mean(self, values: Tensor) -> float:
        return 100 * float(values[self.valid].double().mean()) if bool(self.valid.any()) else float("nan")


def rank_gallery(distances: Tensor, matches: Tensor, admitted: Tensor | None = None) -> Ranking:
    """Rank the gallery for each probe.

    Average precision is the mean over the correct sequences of the precision at their positions, as in
    OpenGait's and the re-identification evaluators.

    Args:
        distances: ``[n, m]``.
        matches: whether probe and gallery are of the same identity, bool ``[n, m]``.
        admitted: whether the gallery sequence may be compared with the probe; None admits all.
    """
    if admitted is not None:
        distances, matches = distances.masked_fill(~admitted, torch.inf), matches & admitted
    order = distances.argsort(dim=1, stable=True)
    hits = matches.gather(1, order)
    found = hits.cumsum(1)
    total = hits.sum(1)
    valid = total > 0
    positions = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = (found / positions * hits).sum(1) / total.clamp_min(1)
    last_hit = (positions * hits).amax(1)
    return Ranking(
        match_rank=hits.int().argmax(1),
        average_precision=precision,
        inverse_negative_penalty=total / last_hit.clamp_min(1),
        valid=valid,
    )


def single_shot_rank1(distances: Tensor, labels: Tensor, probes: Tensor | None = None) -> float:
    """Rank-1 in percent, expected over all galleries with one sequence of each identity.

    A sequence q is recognised by a gallery sequence p of its identity where the one sequence of every other
    identity is farther away. If those are drawn at random, the probability is ``Π_j share_j(q, p)``, with
    share_j the share of identity j's sequences that are farther from q than p is. The mean over all (q, p) is
    exact, has no steps of one probe, and saturates later than rank-1 against all sequences: a few identities
    tell networks apart.

    Args:
        distances: ``[n, n]``.
        labels: identities, ``[n]``; at least two.
        probes: which sequences are recognised, bool ``[n]``; None takes all. The others are in galleries.

    Returns:
        NaN where no identity has two sequences.
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
    """Signal to quantization noise ratio in dB: the reference's energy over that of the difference.

    Equal embeddings give `LARGEST_SQNR`, so that the figure stays finite.
    """
    noise = (reference.double() - other.double()).square().sum()
    signal = reference.double().square().sum()
    ratio = float(10 * torch.log10(signal / noise))
    return min(ratio, LARGEST_SQNR)


def embedding_cosine(reference: Tensor, other: Tensor) -> Tensor:
    """Cosine between whole embeddings, all parts together: ``[n, ...]`` twice to ``[n]``."""
    return torch.nn.functional.cosine_similarity(
        reference.flatten(1).double(), other.flatten(1).double(), dim=1
    )
