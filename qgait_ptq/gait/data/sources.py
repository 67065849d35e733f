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
from qgait_ptq.gait.data.partition import read_partition
from qgait_ptq.gait.data.sequences import DEFAULT_READING, Reading, cut_width
from qgait_ptq.gait.metrics import Metric
from qgait_ptq.gait.protocols import PROTOCOLS, TestSet, get_protocol, make_test_set
from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.population import TRIALS, VIEWS, Split, split_identities
from qgait_ptq.gait.walkers.rendering import condition_name, render_identities, subject_name, view_name
from qgait_ptq.graph.frame_layout import FrameLayout

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
    """

    calibration: GaitDataset
    test: GaitDataset
    test_set: TestSet | None = None
    metric: Metric = "euclidean"
    description: str = field(default="")
    cut_columns: int | None = None
    modalities: tuple[int, ...] = (0,)

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
    calibration = GaitDataset.from_directory(root, split.train, reading)
    test = GaitDataset.from_directory(root, split.test, reading)
    description = (
        f"{root}: {len(split.train)} subjects for calibration, {len(split.test)} for tests "
        f"({len(test)} sequences)"
    )
    test_set = make_test_set(test, rules, split.probes)
    return GaitData(calibration, test, test_set, metric, description, reading.cut_columns, reading.modalities)


def load_walkers(workers: int = 1, advance: Callable[[], None] = lambda: None) -> GaitData:
    """Render the built-in data: synthetic walkers under the CASIA-B protocol, in memory.

    Args:
        workers: number of processes.
        advance: function to call after each identity.
    """
    render = partial(render_walkers, workers=workers, advance=advance)
    calibration = render(Split.CALIBRATION, CALIBRATION_WALKERS, views_per_trial=CALIBRATION_VIEWS)
    test = render(Split.TEST, TEST_WALKERS, views_per_trial=TEST_VIEWS)
    description = (
        f"synthetic walkers: {CALIBRATION_WALKERS} identities for calibration, {TEST_WALKERS} others for "
        f"tests ({len(test)} sequences, CASIA-B protocol)"
    )
    return GaitData(calibration, test, make_test_set(test, PROTOCOLS["casia-b"]), description=description)


def render_walkers(
    split: Split,
    count: int,
    *,
    first: int = 0,
    trials: tuple[tuple[Condition, int], ...] = TRIALS,
    views_per_trial: int = len(VIEWS),
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> GaitDataset:
    """Render synthetic walkers into memory.

    Args:
        split: identities of different splits differ.
        count: number of identities.
        first: number of identities of the split to skip.
        trials: condition and number of each walk; the default is that of CASIA-B.
        views_per_trial: number of views of each walk, drawn at random from eleven.
        workers: number of processes.
        advance: called after each identity.
    """
    identities = split_identities(split, first + count)[first:]
    rendered = render_identities(identities, trials=trials, views_per_trial=views_per_trial, workers=workers)
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
    return GaitDataset(records, f"{count} synthetic walkers")


def walker_counts() -> tuple[int, int]:
    """Return the numbers of calibration sequences and of test sequences of the built-in walkers."""
    trials = len(TRIALS)
    return CALIBRATION_WALKERS * CALIBRATION_VIEWS * trials, TEST_WALKERS * TEST_VIEWS * trials


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
    return GaitData(calibration, test, description=data.description)
