"""Evaluation protocols: the choice of gallery and probes, and the averages.

The rules are those of OpenGait's evaluator. A protocol is a table of conditions. `evaluate_embeddings`
computes all protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

from qgait_ptq.errors import ConfigError, DataError
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord
from qgait_ptq.gait.metrics import (
    Metric,
    Ranking,
    concatenate_rankings,
    distance_rows,
    rank_gallery,
    row_blocks,
)
from qgait_ptq.system.exchanging import exchange, share_of


@dataclass(frozen=True)
class Protocol:
    """Gallery and probes of a data set, by shell patterns over conditions.

    Attributes:
        name: name of the protocol for ``--protocol``.
        gallery: patterns of the gallery's conditions.
        probes: patterns of each probe set's conditions, by the name of the set.
        per_view_pair: whether rank-1 is the mean over all pairs of a probe view and another gallery view.
            Otherwise each probe is ranked in the complete gallery.
        listed_probes: whether the partition lists the probes as ``subject-type-view`` (``PROBE_SET``). All
            other test sequences are the gallery.
    """

    name: str
    gallery: tuple[str, ...] = ("*",)
    probes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    per_view_pair: bool = False
    listed_probes: bool = False


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "casia-b",
            ("nm-01", "nm-02", "nm-03", "nm-04"),
            {"nm": ("nm-05", "nm-06"), "bg": ("bg-*",), "cl": ("cl-*",)},
            per_view_pair=True,
        ),
        Protocol("oumvlp", ("01",), {"nm": ("00",)}, per_view_pair=True),
        Protocol("gait3d", listed_probes=True),
        Protocol("grew", ("01", "*_gallery"), {"all": ("00", "*_probe")}),
    )
}


def get_protocol(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


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


@dataclass(frozen=True)
class TestSet:
    """The sequences that a protocol compares: indices into a data set."""

    __test__ = False  # not a pytest class

    protocol: Protocol
    gallery: list[int]
    probes: dict[str, list[int]]

    def __repr__(self) -> str:
        probes = ", ".join(f"{len(indices)} {name}" for name, indices in self.probes.items())
        return f"TestSet({self.protocol.name}: {len(self.gallery)} gallery, probes {probes})"

    def with_sequences(self, kept: Sequence[int]) -> TestSet:
        """Return gallery and probes among some of the sequences, with indices into these.

        Args:
            kept: indices of the sequences, in order.

        Raises:
            DataError: no gallery sequence or no probe is left.
        """
        numbers = {index: number for number, index in enumerate(kept)}
        gallery = [numbers[index] for index in self.gallery if index in numbers]
        probes = {
            name: [numbers[index] for index in indices if index in numbers]
            for name, indices in self.probes.items()
        }
        if not gallery or not any(probes.values()):
            raise DataError("no gallery sequence or no probe is left that the network takes")
        return replace(self, gallery=gallery, probes=probes)

    @property
    def all_probes(self) -> list[int]:
        """Return the probes of all sets, in order."""
        return [index for indices in self.probes.values() for index in indices]


def make_test_set(data: GaitDataset, protocol: Protocol, listed_probes: Sequence[str] = ()) -> TestSet:
    """Divide a data set into gallery and probes.

    Args:
        data: test sequences.
        protocol: protocol to apply.
        listed_probes: names ``subject-type-view`` of the probes, for a protocol with `listed_probes`.

    Raises:
        DataError: there is no gallery, no probe, only one identity, or no probe whose identity is in the
            gallery.
    """
    records = data.records
    if protocol.listed_probes:
        listed = set(listed_probes)
        if not listed:
            raise DataError(f"protocol {protocol.name} needs the list PROBE_SET in the partition file")
        probes = {"all": [i for i, r in enumerate(records) if r.name.replace("/", "-") in listed]}
        chosen = set(probes["all"])
        gallery = [i for i in range(len(records)) if i not in chosen]
    else:
        gallery = _select(records, protocol.gallery)
        probes = {name: _select(records, patterns) for name, patterns in protocol.probes.items()}
        probes = {name: indices for name, indices in probes.items() if indices}
    test_set = TestSet(protocol, gallery, probes)
    _check(test_set, records)
    return test_set


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
            rank1[name] = rankings[name].rank(1)
            firsts[name] = subject, (rankings[name].match_rank < 1).float()
    return _summarise(rankings, rank1, _by_identity(rankings, firsts, sorted(subjects)))


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
    rankings: dict[str, Ranking], rank1: dict[str, float], identities: dict[str, IdentityAccuracy]
) -> Accuracy:
    everything = concatenate_rankings(list(rankings.values()))

    def with_mean(values: dict[str, float]) -> dict[str, float]:
        return {**values, "mean": sum(values.values()) / len(values)}

    return Accuracy(
        rank1=with_mean(rank1),
        rank5=with_mean({name: ranking.rank(5) for name, ranking in rankings.items()}),
        rank10=with_mean({name: ranking.rank(10) for name, ranking in rankings.items()}),
        mean_average_precision=everything.mean_average_precision(),
        mean_inverse_negative_penalty=everything.mean_inverse_negative_penalty(),
        cmc=everything.cmc(),
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


def _select(records: Sequence[SequenceRecord], patterns: tuple[str, ...]) -> list[int]:
    return [i for i, r in enumerate(records) if any(fnmatch(r.condition, pattern) for pattern in patterns)]


def _check(test_set: TestSet, records: Sequence[SequenceRecord]) -> None:
    name = test_set.protocol.name
    conditions = sorted({r.condition for r in records})
    present = f"the data have the conditions {', '.join(conditions[:8])}"
    if not test_set.gallery:
        raise DataError(f"protocol {name}: no gallery sequence ({test_set.protocol.gallery}); {present}")
    if not test_set.all_probes:
        raise DataError(f"protocol {name}: no probe sequence ({test_set.protocol.probes}); {present}")
    if len({r.subject for r in records}) < 2:
        raise DataError(f"protocol {name}: the data have one identity only; ranking needs at least two")
    gallery_views: dict[str, set[str]] = {}
    for index in test_set.gallery:
        gallery_views.setdefault(records[index].subject, set()).add(records[index].view)
    probes = [records[i] for i in test_set.all_probes]
    own_view = test_set.protocol.per_view_pair
    if not any(gallery_views.get(r.subject, set()) - ({r.view} if own_view else set()) for r in probes):
        raise DataError(
            f"protocol {name}: none of the {len({r.subject for r in probes})} probe identities has a "
            f"gallery sequence{' of another view' if own_view else ''}; check the partition"
        )
