"""Recognition accuracy of embeddings under a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qgait_ptq.gait.data.dataset import SequenceRecord
from qgait_ptq.gait.metric_names import Metric
from qgait_ptq.gait.metrics import (
    Ranking,
    concatenate_rankings,
    distance_rows,
    rank_gallery,
    row_blocks,
)
from qgait_ptq.gait.protocols import TestSet
from qgait_ptq.system.exchanging import exchange, share_of


@dataclass(frozen=True)
class IdentityAccuracy:
    """Accuracy of one identity's probes, in percent.

    Attributes:
        rank1: mean over its probe sets of the mean over probes. For one probe, it is the mean over gallery
            views.
        average_precision: mean average precision over its probes.
    """

    rank1: float
    average_precision: float


@dataclass(frozen=True)
class Accuracy:
    """Recognition accuracy in percent.

    Attributes:
        rank1: rank-1 of each probe set, and their ``mean``.
        rank5: rank-5 of each probe set against the complete gallery, and their ``mean``.
        rank10: rank-10 of each probe set against the complete gallery, and their ``mean``.
        mean_average_precision: mAP over all probes.
        mean_inverse_negative_penalty: mINP over all probes.
        cmc: rank-1 to rank-20 over all probes.
        identities: accuracy of each identity's probes, for paired comparisons.
    """

    rank1: dict[str, float]
    rank5: dict[str, float]
    rank10: dict[str, float]
    mean_average_precision: float
    mean_inverse_negative_penalty: float
    cmc: list[float]
    identities: dict[str, IdentityAccuracy] = field(default_factory=dict)

    def to_report(self) -> dict[str, Any]:
        """Return the accuracy with the keys of ``report.json``."""
        return {
            "rank1": self.rank1,
            "rank5": self.rank5,
            "rank10": self.rank10,
            "mAP": self.mean_average_precision,
            "mINP": self.mean_inverse_negative_penalty,
            "cmc": self.cmc,
        }


def evaluate_embeddings(
    embeddings: Tensor,
    records: Sequence[SequenceRecord],
    test_set: TestSet,
    metric: Metric = "euclidean",
    known: Tensor | None = None,
) -> Accuracy:
    """Compute the accuracy of embeddings under a protocol.

    If the protocol compares pairs of views, rank-1 of a probe set is the mean over all pairs of different
    probe and gallery views. mAP and mINP then rank each probe against the gallery of the other views.

    Args:
        embeddings: embeddings of all records, ``[n, c, p]``.
        records: records of the embeddings.
        test_set: gallery and probes, as indices of records.
        metric: distance between embeddings.
        known: embeddings ``[n, c, p]`` for the gallery if another network embedded it; None for
            `embeddings`.
    """
    gallery = [records[i] for i in test_set.gallery]
    views = sorted({r.view for r in gallery} | {records[i].view for i in test_set.all_probes})
    view_index = {view: index for index, view in enumerate(views)}
    subjects = {name: index for index, name in enumerate(sorted({r.subject for r in records}))}
    gallery_subject = torch.tensor([subjects[r.subject] for r in gallery])
    gallery_view = torch.tensor([view_index[r.view] for r in gallery])
    gallery_embeddings = (embeddings if known is None else known)[test_set.gallery]
    rankings: dict[str, Ranking] = {}
    rank1: dict[str, float] = {}
    firsts: dict[str, tuple[Tensor, Tensor]] = {}  # probe set → subject of each probe, and rank-1
    for name, indices in test_set.probes.items():
        subject = torch.tensor([subjects[records[i].subject] for i in indices])
        view = torch.tensor([view_index[records[i].view] for i in indices])
        blocks, nearest = [], []
        own = share_of(row_blocks(len(indices), len(gallery)))  # whole blocks, so that sums have one order
        for block, distances in distance_rows(embeddings[indices], gallery_embeddings, metric, blocks=own):
            matches = subject[block, None] == gallery_subject
            admitted = view[block, None] != gallery_view if test_set.protocol.per_view_pair else None
            blocks.append(rank_gallery(distances, matches, admitted))
            if test_set.protocol.per_view_pair:
                nearest.append(_nearest_per_view(distances, matches, gallery_view, len(views)))
        ranked = exchange((blocks, nearest))
        rankings[name] = concatenate_rankings([ranking for part, _ in ranked for ranking in part])
        if test_set.protocol.per_view_pair:
            correct = torch.cat([rows for _, part in ranked for rows in part])
            rank1[name] = _mean_over_view_pairs(correct, view, len(views))
            own_view = torch.arange(len(views)) == view[:, None]
            firsts[name] = subject, correct.masked_fill(own_view, torch.nan).nanmean(1)
        else:
            rank1[name] = rankings[name].rank(1, of_all=test_set.protocol.counts_all_probes)
            firsts[name] = subject, (rankings[name].match_rank < 1).float()
    identities = _by_identity(rankings, firsts, sorted(subjects))
    return _summarise(rankings, rank1, identities, of_all=test_set.protocol.counts_all_probes)


def _by_identity(
    rankings: dict[str, Ranking], firsts: dict[str, tuple[Tensor, Tensor]], names: list[str]
) -> dict[str, IdentityAccuracy]:
    """Return the accuracy of each identity that has a probe with a match."""
    by_name = {}
    for number, name in enumerate(names):
        ranks, precisions = [], []
        for probe_set, (subject, first) in firsts.items():
            own = (subject == number) & rankings[probe_set].valid
            if bool(own.any()):
                ranks.append(100 * float(first[own].double().mean()))
                precisions.append(rankings[probe_set].average_precision[own].double())
        if ranks:
            precision = 100 * float(torch.cat(precisions).mean())
            by_name[name] = IdentityAccuracy(sum(ranks) / len(ranks), precision)
    return by_name


def _summarise(
    rankings: dict[str, Ranking],
    rank1: dict[str, float],
    identities: dict[str, IdentityAccuracy],
    *,
    of_all: bool,
) -> Accuracy:
    everything = concatenate_rankings(list(rankings.values()))

    def with_mean(values: dict[str, float]) -> dict[str, float]:
        return {**values, "mean": sum(values.values()) / len(values)}

    return Accuracy(
        rank1=with_mean(rank1),
        rank5=with_mean({name: ranking.rank(5, of_all=of_all) for name, ranking in rankings.items()}),
        rank10=with_mean({name: ranking.rank(10, of_all=of_all) for name, ranking in rankings.items()}),
        mean_average_precision=everything.mean_average_precision(),
        mean_inverse_negative_penalty=everything.mean_inverse_negative_penalty(),
        cmc=everything.cmc(of_all=of_all),
        identities=identities,
    )


def _nearest_per_view(distances: Tensor, matches: Tensor, gallery_view: Tensor, views: int) -> Tensor:
    """Return whether the nearest gallery sequence of each view shows the probe's identity: ``[n, views]``.

    The value is NaN if the gallery has no sequence of the view.
    """
    correct = torch.full((len(distances), views), torch.nan)
    for view in range(views):
        columns = torch.nonzero(gallery_view == view)[:, 0]
        if len(columns):
            nearest = distances[:, columns].argmin(1, keepdim=True)
            correct[:, view] = matches[:, columns].gather(1, nearest)[:, 0].float()
    return correct


def _mean_over_view_pairs(correct: Tensor, probe_view: Tensor, views: int) -> float:
    """Return the mean rank-1 in percent over the pairs of different views, with equal weights."""
    accuracy = torch.full((views, views), torch.nan, dtype=torch.float64)
    for view in probe_view.unique():
        accuracy[view] = correct[probe_view == view].double().mean(0)
    accuracy.fill_diagonal_(torch.nan)
    return 100 * float(accuracy.nanmean())
