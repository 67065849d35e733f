"""Shapes of a submodule's input and output, and a module that replaces the submodule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qgait_ptq.errors import DataError, SequenceLengthWarning
from qgait_ptq.graph.frame_counts import FrameCounts

Run = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class FramesAt:
    """Axis of the frames of ``n`` sequences in a tensor.

    Attributes:
        axis: axis of the frames, with sequences on the first axis. 0 means that the first axis has all
            frames of all sequences, ``n·s``. None means that the tensor has no frames.
    """

    axis: int | None

    def to_sequences(self, tensor: Tensor, sequences: int) -> Tensor:
        """Move the frames to the second axis: ``[n, s, ...]``."""
        if self.axis == 0:
            return tensor.unflatten(0, (sequences, -1))
        return tensor if self.axis is None else tensor.movedim(self.axis, 1)

    def from_sequences(self, tensor: Tensor) -> Tensor:
        """Undo `to_sequences`."""
        if self.axis == 0:
            return tensor.flatten(0, 1)
        return tensor if self.axis is None else tensor.movedim(1, self.axis)


@dataclass(frozen=True)
class SubmoduleShapes:
    """Shapes of a submodule's input and output.

    Attributes:
        given: axis of the frames in the input.
        result: axis of the frames in the output.
        result_shape: shape of the output, without sequences and frames.
    """

    given: FramesAt
    result: FramesAt
    result_shape: tuple[int, ...]

    def flatten_result(self, result: Tensor, sequences: int) -> Tensor:
        """Return the output in the form of a file: ``[n, s, F]``, ``[n, c, F]`` or ``[n, c]``."""
        moved = self.result.to_sequences(result, sequences)
        return moved.flatten(2) if moved.ndim > 3 else moved

    def restore_result(self, flat: Tensor) -> Tensor:
        """Undo `flatten_result`."""
        leading = 1 if self.result.axis is None else 2
        return self.result.from_sequences(flat.reshape(*flat.shape[:leading], *self.result_shape))

    def describe(self) -> dict[str, Any]:
        """Return the shapes for the file; `parse_shapes` reads them."""
        return {
            "given_axis": self.given.axis,
            "result_axis": self.result.axis,
            "result_shape": list(self.result_shape),
        }


def parse_shapes(described: Mapping[str, Any]) -> SubmoduleShapes:
    """Undo `SubmoduleShapes.describe`."""
    given, result = (FramesAt(described[f"{name}_axis"]) for name in ("given", "result"))
    return SubmoduleShapes(given, result, tuple(described["result_shape"]))


class Replacement(nn.Module):
    """A module that replaces a submodule of a network and computes it with `run`.

    It takes one tensor, by position or by name. `run` gets frame counts that `counts` takes only.
    """

    def __init__(self, run: Run, shapes: SubmoduleShapes, counts: FrameCounts) -> None:
        super().__init__()
        self.run, self.shapes, self.counts = run, shapes, counts

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """Compute the output of the submodule from its input.

        Raises:
            DataError: a frame count at which `run` would compute something else than the submodule. If one
                frame count only is taken, and the output has no frames, frames are repeated or left out as
                `Embedder` does it, with a `SequenceLengthWarning`.
        """
        (tensor,) = (*given, *named.values())
        # If all frames are on one axis, they are treated as frames of one sequence.
        return self.shapes.restore_result(self.run(self._fit(self.shapes.given.to_sequences(tensor, 1))))

    def _fit(self, sequences: Tensor) -> Tensor:
        """Return the frames of sequences ``[n, s, ...]`` that `run` takes."""
        length = sequences.shape[1]
        if self.counts.takes(length):
            return sequences
        if self.counts.fixed is not None and self.shapes.result.axis is not None:
            raise DataError(
                f"the submodule gets {length} frames; its file takes {self.counts}, and the network needs "
                "the output for each frame. Give the network sequences of that length"
            )
        indices = self.counts.indices(length, "the input of the submodule")
        if self.counts.fixed is not None:
            warnings.warn(
                f"the submodule's file takes {self.counts}, but got {length}: shorter sequences are repeated "
                "in a circle, and of longer ones the first frames are taken",
                SequenceLengthWarning,
                stacklevel=4,
            )
        return sequences[:, indices]
