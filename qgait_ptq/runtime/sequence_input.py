"""The input of an embedder: one sequence, checked and in the shape of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.modalities import as_modalities, check_integers, check_layout, check_modalities
from qgait_ptq.gait.data.sequences import as_array, check_silhouettes, check_values, cut_width, shape_text
from qgait_ptq.graph.frame_layout import FrameLayout, InputKind

Recording = NDArray[Any] | tuple[NDArray[Any], ...] | Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class SequenceInput:
    """The sequences that a file takes.

    Attributes:
        path: path of the file, for errors.
        layout: layout of several inputs; None for one input.
        frame_shape: shape of a frame of the only input.
        raw: whether the network takes unscaled values instead of silhouettes.
        cut_columns: columns that calibration cut from each side of a frame; None for the empty columns of
            square silhouettes.
        largest: largest integer of inputs that are looked up as given, by name.
    """

    path: Path
    layout: FrameLayout | None
    frame_shape: tuple[int, ...]
    raw: bool
    cut_columns: int | None
    largest: Mapping[str, int]

    def check(self, sequence: Recording) -> list[NDArray[Any]]:
        """Check a sequence, and return the frames of each input in the shape of the network.

        Raises:
            DataError: the sequence has another type, shape or size, or no frame.
        """
        several = as_modalities(sequence)
        if self.layout is None:
            if several is not None:
                raise DataError(f"the sequence has {len(several)} arrays, but {self.path} takes one")
            return [self._check_one(as_array(sequence, "the sequence"))]
        names = [entry.name for entry in self.layout.inputs]
        if several is None or len(several) != len(names):
            count = "one array" if several is None else f"{len(several)} arrays"
            raise DataError(
                f"the sequence has {count}, but {self.path} takes {len(names)}: {', '.join(names)}"
            )
        if isinstance(sequence, tuple):
            several = dict(zip(names, sequence, strict=True))
        if set(several) != set(names):
            raise DataError(
                f"the sequence has {', '.join(several)}, but {self.path} takes {', '.join(names)}"
            )
        ordered = {name: several[name] for name in names}
        arrays = check_modalities(ordered, "the sequence", self.raw)
        for entry in self.layout.inputs:
            if entry.kind is InputKind.SILHOUETTES:
                arrays[entry.name] = self._cut(arrays[entry.name], entry.shape)
        check_layout(arrays, self.layout, "the sequence")
        check_integers(arrays, self.largest, "the sequence")
        return list(arrays.values())

    def _cut(self, frames: NDArray[Any], frame_shape: tuple[int, ...]) -> NDArray[Any]:
        """Cut the columns that were cut in calibration."""
        if self.raw and self.cut_columns is None:
            return frames
        if frames.shape[1:] != frame_shape and frames.shape[-1] > 2 * (self.cut_columns or 0):
            return cut_width(frames, self.cut_columns)
        return frames

    def _check_one(self, sequence: NDArray[Any]) -> NDArray[Any]:
        """Check an array, and return its frames in the shape of the network."""
        check = check_values if self.raw else check_silhouettes
        frames: NDArray[Any] = self._cut(check(sequence, "the sequence"), self.frame_shape)
        if frames.shape[1:] != self.frame_shape:
            kind, actual = "frames" if self.raw else "silhouettes", shape_text(sequence.shape[1:])
            raise DataError(
                f"the sequence has {kind} of {actual}, but {self.path} takes {shape_text(self.frame_shape)}"
            )
        return frames
