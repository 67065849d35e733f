"""The data of a run: a calibration set, and a test set with an optional protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
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
from qgait_ptq.gait.protocols import PROTOCOLS, TestSet, get_protocol, make_test_set
from qgait_ptq.gait.walkers.cached import open_walker_cache
from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.population import TRIALS, VIEWS, Split, split_identities
from qgait_ptq.gait.walkers.rendering import condition_name, render_identities, subject_name, view_name
from qgait_ptq.graph.frame_layout import FrameLayout
from qgait_ptq.system.exchanging import exchange, for_all, share_of
from qgait_ptq.system.file_cache import FileCache
from qgait_ptq.system.processes import processes

CALIBRATION_WALKERS, TEST_WALKERS = 16, 20
CALIBRATION_VIEWS, TEST_VIEWS = 1, 11  # views of each walk
WALKER_FRAME_SHAPE = (64, 44)
SHARE_HELD_BACK = 4  # without a protocol, one in this number of sequences is a test sequence


@dataclass(frozen=True)
class GaitData:
    """Calibration data and test data of a run.

    Attributes:
        calibration: calibration sequences.
        test: test sequences.
        test_set: gallery and probes among the test sequences. None without a protocol: only agreement is
            measured.
        metric: distance between embeddings.
        description: description of the data in one line.
        cut_columns: columns that were cut from each side of a frame; None for the empty columns of square
            frames.
        modalities: indices of the array files in a sequence folder that were read.
        notes: what was left out when the data were read, and what to check.
        finetuning: more labelled sequences, which only fine-tuning uses; None for the calibration sequences
            alone.
        unlabelled: more sequences for fine-tuning, whose labels are not read; None for no more.
    """

    calibration: GaitDataset
    test: GaitDataset
    test_set: TestSet | None = None
    metric: Metric = "euclidean"
    description: str = field(default="")
    cut_columns: int | None = None
    modalities: tuple[int, ...] = (0,)
    notes: DataNotes = field(default_factory=DataNotes)
    finetuning: GaitDataset | None = None
    unlabelled: GaitDataset | None = None

    def __post_init__(self) -> None:
        """Compare the test set with the test sequences.

        Raises:
            DataError: an index of the gallery or the probes exceeds the test sequences.
        """
        if self.test_set is None:
            return
        last = max([*self.test_set.gallery, *self.test_set.all_probes], default=-1)
        if last >= len(self.test):
            raise DataError(
                f"gallery and probes name test sequence {last}, but the data have {self.test.counts} for "
                "testing. GaitData.with_test chooses some of the test sequences, with gallery and probes; "
                "test_set=None measures the agreement alone"
            )

    def __repr__(self) -> str:
        tests = "no gallery and probes" if self.test_set is None else repr(self.test_set)
        return f"GaitData({self.calibration.counts} for calibration, {self.test.counts} for testing, {tests})"

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

    def with_test(self, kept: Sequence[int]) -> GaitData:
        """Return the same data with some of the test sequences only.

        Args:
            kept: their indices, in order.

        Raises:
            DataError: no gallery sequence or no probe is left.
        """
        if len(kept) == len(self.test):
            return self
        test = GaitDataset([self.test.records[index] for index in kept], self.test.description)
        return replace(self, test=test, test_set=self.test_set and self.test_set.with_sequences(kept))

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Return the shape of a frame: ``(h, w)``, ``(c, h, w)`` for maps, ``(F,)`` for several inputs."""
        sequence, _ = self.calibration[0]
        return sequence.shape[1:]

    @property
    def layout(self) -> FrameLayout | None:
        """Return the layout of several inputs; None for one input."""
        return self.calibration.layout

    @property
    def raw(self) -> bool:
        """Return whether all inputs are unscaled values instead of silhouettes."""
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
    """Load data in the OpenGait layout: TRAIN_SET for calibration, TEST_SET for tests.

    Args:
        root: root folder of the data set.
        partition: path of the partition file; None for ``partition.json`` in the root.
        protocol: name of the protocol.
        metric: distance between embeddings.
        reading: settings of reading.

    Raises:
        ConfigError: the protocol is unknown.
        DataError: the data are not valid; see `GaitDataset.from_directory` and `make_test_set`.
    """
    rules, root = get_protocol(protocol), Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: the folder does not exist; pass the root folder of the data set")
    split_file = Path(partition) if partition is not None else root / "partition.json"
    split = read_partition(split_file)
    if not split.train:
        raise DataError(f"{split_file}: TRAIN_SET is empty; calibration needs at least one subject")
    if not split.test:
        raise DataError(f"{split_file}: TEST_SET is empty; move some subjects of TRAIN_SET there")
    notes = DataNotes()
    train, tested = _present_identities(root, split, split_file, notes)
    calibration = GaitDataset.from_directory(root, train, reading)
    test = GaitDataset.from_directory(root, tested, reading)
    description = (
        f"{root}: {len(calibration.subjects)} subjects for calibration, {len(test.subjects)} for tests "
        f"({len(test)} sequences)"
    )
    notes += calibration.notes + test.notes
    try:
        test_set = make_test_set(test, rules, split.probes)
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


def load_walkers(
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
    finetuning: int = 0,
    *,
    test_walkers: int = TEST_WALKERS,
    cache: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> GaitData:
    """Render the built-in data: synthetic walkers under the CASIA-B protocol, in memory.

    Args:
        workers: number of processes.
        advance: function to call after each identity.
        finetuning: number of sequences of other identities to render for fine-tuning, rounded up to whole
            identities.
        test_walkers: number of identities for tests. Fewer are faster, and give coarser figures.
        cache: whether to keep rendered walkers in ``$XDG_CACHE_HOME/qgait_ptq`` for later runs.
        note: receives one line for the user if the cache cannot be used.
    """
    kept = open_walker_cache(note) if cache else None
    render = partial(render_walkers, workers=workers, advance=advance, cache=kept)
    calibration = render(Split.CALIBRATION, CALIBRATION_WALKERS, views_per_trial=CALIBRATION_VIEWS)
    test = render(Split.TEST, test_walkers, views_per_trial=TEST_VIEWS)
    description = (
        f"synthetic walkers: {CALIBRATION_WALKERS} identities for calibration, {test_walkers} others for "
        f"tests ({len(test)} sequences, CASIA-B protocol)"
    )
    more = None
    if finetuning:
        count = finetuning_identities(finetuning)
        first = CALIBRATION_WALKERS
        more = render(Split.CALIBRATION, count, first=first, views_per_trial=CALIBRATION_VIEWS)
        description += f"; {len(more)} sequences of {count} others for fine-tuning"
    test_set = make_test_set(test, PROTOCOLS["casia-b"])
    return GaitData(calibration, test, test_set, description=description, finetuning=more)


def finetuning_identities(sequences: int) -> int:
    """Return the number of built-in walkers that have at least so many sequences for fine-tuning."""
    return -(-sequences // (CALIBRATION_VIEWS * len(TRIALS)))


def render_walkers(
    split: Split,
    count: int,
    *,
    first: int = 0,
    trials: tuple[tuple[Condition, int], ...] = TRIALS,
    views_per_trial: int = len(VIEWS),
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
    cache: FileCache | None = None,
) -> GaitDataset:
    """Render synthetic walkers into memory. The processes of a run share them, and each gets all.

    Args:
        split: identities of different splits differ.
        count: number of identities.
        first: number of identities of the split to skip.
        trials: condition and number of each walk; the default is that of CASIA-B.
        views_per_trial: number of views of each walk, drawn at random from eleven.
        workers: number of processes.
        advance: called after each identity.
        cache: cache of rendered walkers; None for none.
    """
    identities = share_of(split_identities(split, first + count)[first:])
    workers, advance = max(1, workers // processes().count), for_all(advance)
    rendered = render_identities(identities, None, trials, views_per_trial, workers, cache)
    records: list[SequenceRecord] = []
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
    everything = [record for part in exchange(records) for record in part]
    return GaitDataset(everything, f"{count} synthetic walkers")


def walker_counts(test_walkers: int = TEST_WALKERS) -> tuple[int, int]:
    """Return the numbers of calibration sequences and of test sequences of the built-in walkers."""
    trials = len(TRIALS)
    return CALIBRATION_WALKERS * CALIBRATION_VIEWS * trials, test_walkers * TEST_VIEWS * trials


def as_gait_data(data: Any) -> GaitData:
    """Convert data for `quantize`: a `GaitData`, a `GaitDataset`, or (sequence, label) pairs.

    Without gallery and probes, one in four sequences becomes a test sequence, which measures agreement.

    Raises:
        DataError: the data have another type, or no sequence.
    """
    if isinstance(data, GaitData):
        return data
    if not isinstance(data, GaitDataset):
        if not isinstance(data, Iterable):
            raise DataError(f"data is a {type(data).__name__}, not a GaitDataset or (sequence, label) pairs")
        data = GaitDataset.from_pairs(data)
    records: Sequence[SequenceRecord] = data.records
    if not records:
        raise DataError("the data have no sequence")
    held = [r for i, r in enumerate(records) if i % SHARE_HELD_BACK == SHARE_HELD_BACK - 1] or list(records)
    kept = [r for i, r in enumerate(records) if i % SHARE_HELD_BACK != SHARE_HELD_BACK - 1]
    calibration, test = (GaitDataset(some, layout=data.layout) for some in (kept, held))
    return GaitData(calibration, test, description=data.description, notes=data.notes)
