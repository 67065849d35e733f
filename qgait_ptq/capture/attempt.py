"""One attempt to capture a network: its graph, the sizes at which it is right, and what limits them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from torch import fx, nn

from qgait_ptq.capture.baked_sizes import find_baked_size
from qgait_ptq.capture.captured import (
    BATCH_AXIS,
    EXAMPLE_BATCH,
    FRAME_AXIS,
    LONGER_EXAMPLE_FRAMES,
    PINNED_FRAMES,
    Capture,
)
from qgait_ptq.capture.comparison import Comparer, Comparison, Size
from qgait_ptq.capture.guards import SizeGuards
from qgait_ptq.capture.program import export_network
from qgait_ptq.capture.size_decisions import cause_of_constant, cause_of_limit
from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.frame_counts import FrameCounts

LARGER = {BATCH_AXIS: (1, 0), FRAME_AXIS: (0, 4)}  # by which the example of a second capture is larger


class Attempt:
    """A graph captured with some axes free, and its comparison with the network.

    Attributes:
        graph_module: captured graph.
    """

    def __init__(self, network: nn.Module, captured: Capture) -> None:
        """Export the network, and compare the graph with it on the example.

        Args:
            network: network in eval mode with the embedding as its only output.
            captured: sizes of the example, and which axes are free.

        Raises:
            CaptureError: torch.export does not support the network, or the graph differs from it.
        """
        self._network, self._captured = network, captured
        self._exported = export_network(network, captured.example(), captured.free_axes)
        self.graph_module = self._exported.graph_module
        self._comparer = Comparer(network, self.graph_module, captured.frame_shape)
        if self._comparer.compare(captured.own_size) is Comparison.DIFFERS:
            raise CaptureError(
                "the captured graph differs from the network on the input of the capture; check that the "
                "network keeps no state and draws no random numbers in eval mode"
            )
        free = captured.free_axes - self._exported.fixed_axes
        self._guards = {axis: SizeGuards(self._exported.program, axis) for axis in free}

    def conclude(self) -> tuple[Capture, bool]:
        """Compare graph and network at other sizes.

        Returns:
            The capture with its graph, and True. If the graph is not right at all sizes: the sizes for the
            next attempt, which has a longer example or a fixed axis, and False.
        """
        captured, counts = self._captured, self._frame_counts()
        usual = captured.frames is not None or counts.takes(PINNED_FRAMES)
        if not usual and self._takes_longer_example():
            return replace(captured, example_frames=LONGER_EXAMPLE_FRAMES), False
        wrong = self._exported.fixed_axes | self._wrong_batches() | (set() if usual else {FRAME_AXIS})
        limited = replace(captured, frame_counts=counts) if usual else captured
        found = {size: self._comparer.compare(size) for size in limited.sizes}
        wrong = wrong or {axis for axis in limited.free_axes if _must_pin(found, axis, captured.own_size)}
        if wrong:
            # With the frame count fixed, the capture can be right at any batch size.
            wrong = {FRAME_AXIS} if FRAME_AXIS in wrong else wrong
            for axis in wrong:
                captured = captured.because(axis, self._cause(axis, found))
            return replace(captured, frame_counts=limited.frame_counts).pin(wrong), False
        if counts.shortest > 1 or counts.longest is not None:
            limited = limited.because(FRAME_AXIS, self._limit(FRAME_AXIS))
        checked = tuple(size for size, result in found.items() if result is Comparison.AGREES)
        outputs = {size: self._comparer.outputs[size] for size in checked}
        return replace(limited, graph_module=self.graph_module, checked=checked, outputs=outputs), True

    def _frame_counts(self) -> FrameCounts:
        """Return the frame counts at which the graph is right, by the conditions of torch.export."""
        guards = self._guards.get(FRAME_AXIS)
        counts = self._captured.frame_counts
        return self._comparer.frame_counts(guards, *self._captured.own_size) if guards else counts

    def _wrong_batches(self) -> set[int]:
        """Return the axis of the batch if the graph is not right at each batch size, by these conditions."""
        guards = self._guards.get(BATCH_AXIS)
        right = guards is None or self._comparer.batch_is_free(guards, *self._captured.own_size)
        return set() if right else {BATCH_AXIS}

    def _takes_longer_example(self) -> bool:
        """Return whether the example can be longer, to go the way of the network for usual frame counts."""
        size = (EXAMPLE_BATCH, LONGER_EXAMPLE_FRAMES)
        longer = self._captured.example_frames < LONGER_EXAMPLE_FRAMES
        return longer and self._comparer.compare(size) is not Comparison.REFUSED

    def _cause(self, axis: int, found: dict[Size, Comparison]) -> str:
        """Return what makes an axis fixed; empty if it is not known."""
        if axis in self._exported.fixed_axes:
            return cause_of_constant(self._exported.decisions, self._captured.own_size[axis])
        differing = [size[axis] for size, result in found.items() if result is Comparison.DIFFERS]
        cause = self._limit(axis)
        if not cause and differing:
            cause = cause_of_limit(self._exported.decisions, self._guards[axis], differing)
        return cause or self._constant(axis)

    def _limit(self, axis: int) -> str:
        """Return what makes the graph wrong beyond some size of an axis; empty if it is not known."""
        guards, own = self._guards.get(axis), list(self._captured.own_size)
        if guards is None:
            return ""
        for size in guards.changes(own[axis]):
            compared = (size, own[FRAME_AXIS]) if axis == BATCH_AXIS else (own[BATCH_AXIS], size)
            if self._comparer.compare(compared) is Comparison.DIFFERS:
                return cause_of_limit(self._exported.decisions, guards, [size])
        return ""

    def _constant(self, axis: int) -> str:
        """Return the operator that holds a size as a number which torch.export did not notice."""
        (batch, frames), (more, longer) = self._captured.own_size, LARGER[axis]
        example = self._captured.example(batch + more, frames + longer)
        second: fx.GraphModule | None = None
        with suppress(CaptureError):
            second = export_network(self._network, example, self._captured.free_axes).graph_module
        place = find_baked_size(self.graph_module, second) if second is not None else ""
        return f"{place} has it as a constant" if place else ""


def _must_pin(found: dict[Size, Comparison], axis: int, own: Size) -> bool:
    """Return whether a free dimension must be fixed: another size differs, or all are refused."""
    others = [
        result
        for size, result in found.items()
        if size[axis] != own[axis] and size[1 - axis] == own[1 - axis]
    ]
    return bool(others) and (
        Comparison.DIFFERS in others or all(result is Comparison.REFUSED for result in others)
    )
