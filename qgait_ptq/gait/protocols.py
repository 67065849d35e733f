"""Evaluation protocols: the choice of gallery and probes.

The rules are those of OpenGait's evaluator. A protocol is a table of conditions. `protocol_accuracy` computes
all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from qgait_ptq.errors import ConfigError, DataError
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord
from qgait_ptq.gait.data.names import composed
from qgait_ptq.gait.data.notes import some_names


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
        counts_all_probes: whether rank-k counts probes without a match in the gallery, as not recognised.
            Pairs of views always count them.
    """

    name: str
    gallery: tuple[str, ...] = ("*",)
    probes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    per_view_pair: bool = False
    listed_probes: bool = False
    counts_all_probes: bool = False


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
        Protocol("grew", ("01", "*_gallery"), {"all": ("02", "*_probe")}, counts_all_probes=True),
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
        """
        numbers = {index: number for number, index in enumerate(kept)}
        gallery = [numbers[index] for index in self.gallery if index in numbers]
        probes = {
            name: [numbers[index] for index in indices if index in numbers]
            for name, indices in self.probes.items()
        }
        left = {name: indices for name, indices in probes.items() if indices}
        return replace(self, gallery=gallery, probes=left)

    def with_view_pairs(self, records: Sequence[SequenceRecord]) -> TestSet:
        """Return the probe sets with a pair of different views, if the protocol compares these.

        If there is none, all are kept, and `check_test_set` names them.

        Args:
            records: records of all sequences.
        """
        unpaired = _unpaired(self, records) if self.protocol.per_view_pair else []
        paired = {name: indices for name, indices in self.probes.items() if name not in unpaired}
        return replace(self, probes=paired or self.probes)

    def missing_note(self, left: TestSet) -> str:
        """Return a note on the probe sets of which a smaller test set has none; empty if it has all."""
        missing = ", ".join(name for name in self.probes if name not in left.probes)
        if not missing:
            return ""
        return (
            f"no probe that can be ranked is left of {missing}: the means are those of the other probe sets"
        )

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
        DataError: the sequences cannot be ranked, see `check_test_set`, or an entry of `listed_probes` fits
            several sequences.
    """
    records = data.records
    if protocol.listed_probes:
        listed = set(map(composed, listed_probes))
        if not listed:
            raise DataError(f"protocol {protocol.name} needs the list PROBE_SET in the partition file")
        _check_unambiguous(records, listed, protocol)
        probes = {"all": [i for i, r in enumerate(records) if probe_name(r) in listed]}
        chosen = set(probes["all"])
        gallery = [i for i in range(len(records)) if i not in chosen]
    else:
        gallery = _select(records, protocol.gallery)
        probes = {name: _select(records, patterns) for name, patterns in protocol.probes.items()}
        probes = {name: indices for name, indices in probes.items() if indices}
    test_set = TestSet(protocol, gallery, probes)
    check_test_set(test_set, records)
    return test_set


def probe_name(record: SequenceRecord) -> str:
    """Return the name of a sequence in PROBE_SET, ``subject-type-view``, see `composed`."""
    return composed(record.name.replace("/", "-"))


def _check_unambiguous(records: Sequence[SequenceRecord], listed: set[str], protocol: Protocol) -> None:
    """Check that each listed probe is one sequence: names with ``-`` in them can be joined to the same text.

    Raises:
        DataError: names the first entry that fits several.
    """
    fitting: dict[str, set[str]] = {}
    for record in records:
        fitting.setdefault(probe_name(record), set()).add(record.name)
    for name in sorted(listed & fitting.keys()):
        if len(fitting[name]) > 1:
            found = f"{len(fitting[name])} sequences ({some_names(sorted(fitting[name]))})"
            raise DataError(
                f"protocol {protocol.name}: {name} in PROBE_SET fits {found}; rename the folders so that "
                "each entry fits one"
            )


def _select(records: Sequence[SequenceRecord], patterns: tuple[str, ...]) -> list[int]:
    return [
        i for i, r in enumerate(records) if any(fnmatchcase(r.condition, pattern) for pattern in patterns)
    ]


def check_test_set(test_set: TestSet, records: Sequence[SequenceRecord]) -> None:
    """Compare gallery and probes with each other.

    Raises:
        DataError: there is no gallery, no probe, only one identity, no probe whose identity is in the
            gallery, or a probe set without a pair of different views.
    """
    name = test_set.protocol.name
    conditions = sorted({r.condition for r in records})
    present = f"the data have the conditions {', '.join(conditions[:8])}"
    if not test_set.gallery:
        raise DataError(f"protocol {name}: no gallery sequence ({test_set.protocol.gallery}); {present}")
    if not test_set.all_probes:
        raise DataError(f"protocol {name}: no probe sequence ({test_set.protocol.probes}); {present}")
    if len({r.subject for r in records}) < 2:
        raise DataError(f"protocol {name}: the data have one identity only; ranking needs at least two")
    gallery_views = views_by_subject(records[index] for index in test_set.gallery)
    probes = [records[i] for i in test_set.all_probes]
    own_view = test_set.protocol.per_view_pair
    if not any(gallery_views.get(r.subject, set()) - ({r.view} if own_view else set()) for r in probes):
        raise DataError(
            f"protocol {name}: none of the {len({r.subject for r in probes})} probe identities has a "
            f"gallery sequence{' of another view' if own_view else ''}; check the partition"
        )
    if own_view:
        _check_view_pairs(test_set, records)


def views_by_subject(records: Iterable[SequenceRecord]) -> dict[str, set[str]]:
    """Return the views in which each subject was recorded."""
    views: dict[str, set[str]] = {}
    for record in records:
        views.setdefault(record.subject, set()).add(record.view)
    return views


def _check_view_pairs(test_set: TestSet, records: Sequence[SequenceRecord]) -> None:
    """Check that each probe set has a pair of a probe view and another gallery view.

    Raises:
        DataError: names the probe sets without one.
    """
    if unpaired := _unpaired(test_set, records):
        view = records[test_set.gallery[0]].view
        raise DataError(
            f"protocol {test_set.protocol.name}: no pair of different views for the probes "
            f"{', '.join(unpaired)}: they and the gallery are of view {view} only, and probes "
            "are ranked among other views. Add another view, or remove these probes from the data"
        )


def _unpaired(test_set: TestSet, records: Sequence[SequenceRecord]) -> list[str]:
    """Return the names of the probe sets without a pair of a probe view and another gallery view."""
    gallery_views = {records[index].view for index in test_set.gallery}
    if len(gallery_views) > 1:
        return []
    return [
        name
        for name, indices in test_set.probes.items()
        if all(records[index].view in gallery_views for index in indices)
    ]
