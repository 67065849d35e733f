"""Calls of operators on tensors with frames, as the rules of `frame_rules` see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from qgait_ptq.graph.views import source

# Ends of sentences that begin with an operator.
COMBINES, LOOKS, COUNTS = "combines frames", "looks at single frames", "computes with the number of frames"
MEETS, MOVES = "combines frames with their maximum", "moves frames"
UNKNOWN = "is not known to treat each frame alone"


@dataclass(frozen=True)
class FrameAxis:
    """The axis of a tensor that holds the frames of one sequence, in order.

    Attributes:
        axis: position from the left.
        each: neighbouring entries of the axis that belong to one frame.
        shape: shape of the tensor at one frame count.
    """

    axis: int
    each: int
    shape: tuple[int, ...]

    @property
    def place(self) -> tuple[int, int]:
        """Position from the right, where 1 is the last axis, and entries of one frame."""
        return self.from_right, self.each

    @property
    def from_right(self) -> int:
        """Position from the right; 1 is the last axis."""
        return len(self.shape) - self.axis

    @property
    def surroundings(self) -> tuple[int, int]:
        """Number of values before the axis, and number of neighbouring values of one frame."""
        return math.prod(self.shape[: self.axis]), self.each * math.prod(self.shape[self.axis + 1 :])

    def is_among(self, axes: int | Sequence[int] | None) -> bool:
        """Return whether some axes contain this one; an empty list stands for all, as in torch."""
        listed = [axes] if isinstance(axes, int) else axes or range(len(self.shape))
        return self.axis in {axis % len(self.shape) for axis in listed}


@dataclass(frozen=True)
class FrameCall:
    """A call of an operator on tensors with frames.

    Attributes:
        node: the call.
        given: the arguments with frames.
        result: frame axis of the result.
        shapes: shapes of all nodes, at several frame counts.
    """

    node: fx.Node
    given: Mapping[fx.Node, FrameAxis]
    result: FrameAxis
    shapes: Mapping[fx.Node, list[tuple[int, ...]]]

    @property
    def only(self) -> FrameAxis | None:
        """Frame axis of the first argument, where no other argument has frames."""
        return self.given.get(source(self.node)) if len(self.given) == 1 else None
