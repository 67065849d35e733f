"""The data of a run: a calibration set, and a test set with an optional protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord
from qgait_ptq.gait.data.notes import DataNotes
from qgait_ptq.gait.metric_names import Metric, check_metric
from qgait_ptq.gait.protocols import TestSet, check_test_set
from qgait_ptq.graph.frame_layout import FrameLayout

SHARE_HELD_BACK = 4  # without a protocol, one in this number of sequences is a test sequence


@dataclass(frozen=True)
class GaitData:
    """Calibration data and test data of a run.

    Attributes:
        calibration: calibration sequences.
        test: test sequences.
        test_set: gallery and probes among the test sequences. None without a protocol: only agreement is
            measured.
        metric: distance between embeddings, by which the evaluation ranks and training compares.
        description: description of the data in one line.
        cut_columns: columns that were cut from each side of a frame; None for the empty columns of square
            frames.
        modalities: indices of the array files in a sequence folder that were read.
        notes: what was left out when the data were read, and what to check.
        finetuning: more labelled sequences, which only fine-tuning uses; None for the calibration sequences
            alone.
        unlabelled: more sequences for fine-tuning, whose labels are not read; None for no more.
        longest: number of frames after which a sequence was cut off when it was read; None for none.
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
    longest: int | None = None

    def __post_init__(self) -> None:
        """Check the metric, and compare the test set with the test sequences.

        Raises:
            ConfigError: the metric is unknown.
            DataError: an index of the gallery or the probes exceeds the test sequences.
        """
        check_metric(self.metric)
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
        """Return the same data with some of the test sequences only, and the probe sets that can be ranked.

        Args:
            kept: their indices, in order.

        Raises:
            DataError: what is left cannot be ranked, see `check_test_set`.
        """
        if len(kept) == len(self.test):
            return self
        kept_records = [self.test.records[index] for index in kept]
        test = GaitDataset(kept_records, self.test.description, self.test.layout, self.test.notes)
        if self.test_set is None:
            return replace(self, test=test)
        test_set = self.test_set.with_sequences(kept).with_view_pairs(kept_records)
        try:
            check_test_set(test_set, test.records)
        except DataError as error:
            raise DataError(f"{len(kept)} of {len(self.test)} test sequences are left: {error}") from None
        return replace(self, test=test, test_set=test_set)

    def limited(self, largest: Mapping[str, int]) -> GaitData:
        """Return the same data with the largest integers of inputs, by name. Reading checks them."""

        def limit(data: GaitDataset | None) -> GaitDataset | None:
            return None if data is None else data.limited(largest)

        return replace(
            self,
            calibration=self.calibration.limited(largest),
            test=self.test.limited(largest),
            finetuning=limit(self.finetuning),
            unlabelled=limit(self.unlabelled),
        )

    def overlap_note(self) -> str | None:
        """Return a note if test sequences are calibration sequences, too; else None."""
        calibrating = set(map(id, self.calibration.records))
        count = sum(id(record) in calibrating for record in self.test.records)
        if not count:
            return None
        return (
            f"{count} of {len(self.test)} test sequences are calibration sequences, too: figures on them say "
            "little about other sequences. Pass more sequences (of four or more, one in four is held back), "
            "or qg.gait.GaitData with test sequences of its own"
        )

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


def as_gait_data(data: Any) -> GaitData:
    """Convert data for `quantize`: a `GaitData`, a `GaitDataset`, or (sequence, label) pairs.

    Without gallery and probes, one in four sequences becomes a test sequence, which measures agreement. Fewer
    than four sequences are test sequences and calibration sequences at once; see `GaitData.overlap_note`.

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
    reading = data.reading
    return GaitData(
        calibration,
        test,
        description=data.description,
        cut_columns=None if reading is None else reading.cut_columns,
        modalities=(0,) if reading is None else reading.modalities,
        notes=data.notes,
        longest=None if reading is None else reading.longest,
    )
