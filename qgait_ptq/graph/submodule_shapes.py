"""What a part of a network takes and gives, and what stands in its place when something else computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class FramesAt:
    """Where the frames of ``n`` sequences lie in a tensor.

    Attributes:
        axis: 0 where the first axis holds all frames of all sequences, ``n·s``; another one where it holds
            frames and the first one sequences; None where there are no frames any more.
    """

    axis: int | None

    def to_sequences(self, tensor: Tensor, sequences: int) -> Tensor:
        """Bring the frames to the second axis: ``[n, s, ...]``."""
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
    """What a part takes and gives.

    Attributes:
        given: where the frames lie in its input.
        result: where they lie in its output.
        result_shape: of its output, without sequences and frames.
    """

    given: FramesAt
    result: FramesAt
    result_shape: tuple[int, ...]

    def flatten_result(self, result: Tensor, sequences: int) -> Tensor:
        """The output as a file gives it: ``[n, s, F]``, ``[n, c, F]`` or ``[n, c]``."""
        moved = self.result.to_sequences(result, sequences)
        return moved.flatten(2) if moved.ndim > 3 else moved

    def restore_result(self, flat: Tensor) -> Tensor:
        """Undo `flatten_result`."""
        leading = 1 if self.result.axis is None else 2
        return self.result.from_sequences(flat.reshape(*flat.shape[:leading], *self.result_shape))

    def describe(self) -> dict[str, Any]:
        """For the file; `parse_shapes` reads it."""
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
    """Stands in a network in the place of a part, and computes it in another way."""

    def __init__(self, run: Run, shapes: SubmoduleShapes) -> None:
        super().__init__()
        self.run, self.shapes = run, shapes

    def forward(self, given: Tensor) -> Tensor:
        """What the part takes to what it gives."""
        # Where frames of all sequences lie in one axis, they may as well be those of one sequence.
        return self.shapes.restore_result(self.run(self.shapes.given.to_sequences(given, 1)))
