"""The data of a run: a calibration set, and where there is one, a test set with its protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset, PackedSilhouettes, SequenceRecord
from qgait_ptq.gait.data.layout import list_subjects
from qgait_ptq.gait.data.notes import (
    NO_FOLDER,
    NO_PROBE,
    NOT_IN_GALLERY,
    NOT_LISTED,
    OTHER_CONDITION,
    UNUSED_KEY,
    DataNotes,
    some_names,
)
from qgait_ptq.gait.data.partition import Partition, read_partition
from qgait_ptq.gait.data.sequences import DEFAULT_READING, Reading, cut_width
from qgait_ptq.gait.metrics import Metric
from qgait_ptq.gait.protocols import PROTOCOLS, TestSet, arrange, get_protocol
from qgait_ptq.gait.walkers.population import TRIALS, Split, split_identities
from qgait_ptq.gait.walkers.rendering import condition_name, render_identities, subject_name, view_name
from qgait_ptq.graph.frame_layout import FrameLayout

CALIBRATION_WALKERS, TEST_WALKERS = 16, 20
CALIBRATION_VIEWS, TEST_VIEWS = 1, 11  # of each walk
WALKER_FRAME_SHAPE = (64, 44)
SHARE_HELD_BACK = 4  # one in so many unlabelled sequences is kept for measuring agreement


@dataclass(frozen=True)
class GaitData:
    """What a run calibrates on and is judged by.

    Attributes:
        calibration: sequences that are observed.
        test: sequences that are evaluated, never observed.
        test_set: gallery and probes among them; None where there is no protocol, and only the agreement of
            embeddings is measured.
        metric: distance of embeddings.
        description: one line.
        cut_columns: cut from each side of a frame when it was read; None cuts what is empty in square ones.
        modalities: which of several array files of a folder were read.
        notes: what was left out when the data were read, and what to check.
    """

    calibration: GaitDataset
    test: GaitDataset
    test_set: TestSet | None = None
    metric: Metric = "euclidean"
    description: str = field(default="")
    cut_columns: int | None = None
    modalities: tuple[int, ...] = (0,)
    notes: DataNotes = field(default_factory=DataNotes)

    @property
    def summary(self) -> str:
        """One line: the number of sequences by their use, and what was left out when they were read."""
        compared = ""
        if self.test_set is not None:
            compared = f" ({len(self.test_set.gallery)} gallery, {len(self.test_set.all_probes)} probes)"
        return (
            f"data: {self.calibration.counts} for calibration, {self.test.counts} for testing{compared}."
            f"{self.notes.text}"
        )

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame: ``(h, w)`` of silhouettes, ``(c, h, w)`` of maps, ``(F,)`` of several."""
        sequence, _ = self.calibration[0]
        return sequence.shape[1:]

    @property
    def layout(self) -> FrameLayout | None:
        """How several inputs lie side by side; None where there is one."""
        return self.calibration.layout

    @property
    def raw(self) -> bool:
        """Whether nothing among the values is a silhouette, and all are taken as they are."""
        if self.layout is not None:
            return not self.layout.has_silhouettes
        sequence, _ = self.calibration[0]
        return sequence.dtype != np.uint8


def load_directory(
    root: str | Path,
    partition: str | Path | None = None,
    protocol: str = "casia-b",
    metric: Metric = "euclidean",
    reading: Reading = DEFAULT_READING,
) -> GaitData:
    """Data of an OpenGait layout: TRAIN_SET calibrates, TEST_SET is evaluated.

    Args:
        root: the top folder.
        partition: partition json; None looks for ``partition.json`` in the root.
        protocol: name of the protocol.
        metric: distance of two parts.
        reading: which file of a folder, and how it is cut.

    Raises:
        ConfigError: no such protocol.
        DataError: see `GaitDataset.from_directory`, `read_partition` and `arrange`.
    """
    rules, root = get_protocol(protocol), Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of sequences")
    split_file = Path(partition) if partition is not None else root / "partition.json"
    split = read_partition(split_file)
    if not split.train:
        raise DataError(f"{split_file}: TRAIN_SET is empty; nothing can calibrate")
    if not split.test:
        raise DataError(f"{split_file}: TEST_SET is empty; nobody is tested (move some of TRAIN_SET there)")
    notes = DataNotes()
    train, tested = _present_identities(root, split, split_file, notes)
    calibration = GaitDataset.from_directory(root, train, reading)
    test = GaitDataset.from_directory(root, tested, reading)
    description = (
        f"{root}: {len(calibration.subjects)} subjects calibrate, {len(test.subjects)} are tested "
        f"({len(test)} sequences)"
    )
    notes += calibration.notes + test.notes
    try:
        test_set = arrange(test, rules, split.probes)
    except DataError as error:  # what was left out can be the reason
        raise DataError(f"{error}.{notes.text}" if notes.text else str(error)) from None
    notes += _protocol_notes(test, test_set, split)
    return GaitData(
        calibration, test, test_set, metric, description, reading.cut_columns, reading.modalities, notes
    )


def _present_identities(
    root: Path, split: Partition, split_file: Path, notes: DataNotes
) -> tuple[list[str], list[str]]:
    """Return the identities of TRAIN_SET and of TEST_SET that have a folder; notes receive the others.

    Raises:
        DataError: no identity of one of them has a folder.
    """
    present = list_subjects(root, notes)
    known = set(present)
    found = [[name for name in names if name in known] for names in (split.train, split.test)]
    for key, names, some in zip(("TRAIN_SET", "TEST_SET"), (split.train, split.test), found, strict=True):
        if not some:
            folders = some_names(present) or "none"
            raise DataError(
                f"{root}: no identity of {key} in {split_file} has a folder ({some_names(names)}; "
                f"folders: {folders}). Use the partition of this data set"
            )
        for name in names:
            if name not in known:
                notes.add(NO_FOLDER, name)
    listed = {*split.train, *split.test}
    for name in present:
        if name not in listed:
            notes.add(NOT_LISTED, name)
    return found[0], found[1]


def _protocol_notes(test: GaitDataset, test_set: TestSet, split: Partition) -> DataNotes:
    """Return what a protocol does not use of the test sequences and of the partition."""
    notes = DataNotes()
    compared = {*test_set.gallery, *test_set.all_probes}
    for index, record in enumerate(test.records):
        if index not in compared:
            notes.add(OTHER_CONDITION, record.condition)
    known = {test.records[index].subject for index in test_set.gallery}
    for record in (test.records[index] for index in test_set.all_probes):
        if record.subject not in known:
            notes.add(NOT_IN_GALLERY, record.name)
    unused_keys = split.other_keys
    if test_set.protocol.listed_probes:
        names = {record.name.replace("/", "-") for record in test.records}
        for name in split.probes:
            if name not in names:
                notes.add(NO_PROBE, name)
    elif split.probes:
        unused_keys = ("PROBE_SET", *unused_keys)
    for key in unused_keys:
        notes.add(UNUSED_KEY, key)
    return notes


def load_walkers(workers: int = 1, advance: Callable[[], None] = lambda: None) -> GaitData:
    """The built-in data: synthetic walkers under the CASIA-B protocol, rendered into memory.

    Args:
        workers: processes that render.
        advance: called after each identity.
    """
    calibration = _render(Split.CALIBRATION, CALIBRATION_WALKERS, CALIBRATION_VIEWS, workers, advance)
    test = _render(Split.TEST, TEST_WALKERS, TEST_VIEWS, workers, advance)
    description = (
        f"synthetic walkers: {CALIBRATION_WALKERS} identities calibrate, {TEST_WALKERS} others are tested "
        f"({len(test)} sequences, CASIA-B protocol)"
    )
    return GaitData(calibration, test, arrange(test, PROTOCOLS["casia-b"]), description=description)


def walker_counts() -> tuple[int, int]:
    """How many sequences of the built-in walkers calibrate, and how many are tested."""
    trials = len(TRIALS)
    return CALIBRATION_WALKERS * CALIBRATION_VIEWS * trials, TEST_WALKERS * TEST_VIEWS * trials


def as_gait_data(data: Any) -> GaitData:
    """Data in the forms that `quantize` takes: a `GaitData`, a `GaitDataset`, or (sequence, label) pairs.

    Without gallery and probes, one in four sequences is held back for measuring agreement.

    Raises:
        DataError: none of these, or no sequence.
    """
    if isinstance(data, GaitData):
        return data
    if not isinstance(data, GaitDataset):
        if not isinstance(data, Iterable):
            raise DataError(f"data is a {type(data).__name__}, not a GaitDataset or (sequence, label) pairs")
        data = GaitDataset.from_pairs(data)
    records: Sequence[SequenceRecord] = data.records
    if not records:
        raise DataError("the data hold no sequence")
    held = [r for i, r in enumerate(records) if i % SHARE_HELD_BACK == SHARE_HELD_BACK - 1] or list(records)
    kept = [r for i, r in enumerate(records) if i % SHARE_HELD_BACK != SHARE_HELD_BACK - 1]
    calibration, test = (GaitDataset(some, layout=data.layout) for some in (kept, held))
    return GaitData(calibration, test, description=data.description, notes=data.notes)


def _render(split: Split, count: int, views: int, workers: int, advance: Callable[[], None]) -> GaitDataset:
    records: list[SequenceRecord] = []
    identities = split_identities(split, count)
    rendered = render_identities(identities, views_per_trial=views, trials=TRIALS, workers=workers)
    with closing(rendered):
        for walks in rendered:
            records.extend(
                SequenceRecord(
                    subject_name(label.identity),
                    condition_name(label),
                    view_name(label),
                    PackedSilhouettes(cut_width(silhouettes)),
                )
                for label, silhouettes in walks
            )
            advance()
    return GaitDataset(records, f"{count} synthetic walkers")
