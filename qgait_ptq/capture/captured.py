"""Capture: a captured network, and the batch sizes and frame counts at which it is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.network_input import random_silhouettes

EXAMPLE_BATCH = 2  # with 1, networks with squeeze are captured wrongly
EXAMPLE_FRAMES = 7  # prime, so that arithmetic on it does not work by accident
LONGER_EXAMPLE_FRAMES = 31  # for networks that go another way with fewer frames than usual
BATCHES = (1, 2, 3)
LARGEST_TRIED = 64  # frames, of an end of the frame counts that is tried, too
FRAME_COUNTS = (5, 7, 12, 17)  # shorter, as captured, with many divisors, more than twice as long
# Sizes of fixed dimensions, if the network, its capture or its file accepts one size only.
PINNED_BATCH, PINNED_FRAMES = 1, 30
BATCH_AXIS, FRAME_AXIS = 0, 1


@dataclass(frozen=True)
class Capture:
    """A captured network.

    Attributes:
        graph_module: takes silhouettes ``[n, s, h, w]``, gives the embedding.
        batch: fixed batch size; None where any is taken.
        frame_counts: frame counts at which the graph computes what the network does.
        frame_shape: shape of one frame: ``(h, w)`` of silhouettes, ``(c, h, w)`` of maps.
        checked: (batch, frames) at which graph and network were compared and agree.
        outputs: embeddings of the graph, as it was captured, for the examples of these sizes.
        example_frames: frame count of examples.
        without_autocast: places, ``file:line``, of regions of `torch.autocast` that are computed in float32.
        without_conversions: places of conversions to half or double precision that have no effect.
        causes: what fixes or limits the size of an axis, by axis, such as ``hann_window at net.py:12 turns
            it into a constant``; an axis without an entry is free, was chosen, or has no known cause.
    """

    graph_module: fx.GraphModule = field(repr=False)
    batch: int | None
    frame_counts: FrameCounts
    frame_shape: tuple[int, ...]
    checked: tuple[tuple[int, int], ...]
    outputs: Mapping[tuple[int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)
    example_frames: int = EXAMPLE_FRAMES
    without_autocast: tuple[str, ...] = ()
    without_conversions: tuple[str, ...] = ()
    causes: Mapping[int, str] = field(default_factory=dict)

    @property
    def frames(self) -> int | None:
        """Fixed frame count; None where several are taken."""
        return self.frame_counts.fixed

    def example(self, sequences: int = EXAMPLE_BATCH, length: int | None = None) -> Tensor:
        """Return random silhouettes ``[n, s, h, w]`` of the nearest size that the graph takes.

        Args:
            sequences: batch size.
            length: frame count; None takes the one of the capture.
        """
        count = self.frame_counts.nearest(length or self.example_frames)
        return random_silhouettes(self.batch or sequences, count, self.frame_shape)

    def empty_example(self) -> Tensor:
        """Return zeros of the sizes of `example`, for exporters, which look at sizes only."""
        return torch.zeros(*self.own_size, *self.frame_shape)

    @property
    def own_size(self) -> tuple[int, int]:
        """Batch size and frame count of examples."""
        return self.batch or EXAMPLE_BATCH, self.frame_counts.nearest(self.example_frames)

    @property
    def free_axes(self) -> frozenset[int]:
        """Return the axes of batch and frames that can have any size."""
        sizes = {BATCH_AXIS: self.batch, FRAME_AXIS: self.frames}
        return frozenset(axis for axis, size in sizes.items() if size is None)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The (batch, frames) to check at: one of both at a time differs from those of the example."""
        own = self.own_size
        batches = BATCHES if self.batch is None else (self.batch,)
        counts = [count for count in (*FRAME_COUNTS, own[1]) if self.frame_counts.takes(count)]
        ends = [self.frame_counts.shortest, self.frame_counts.longest or 0]
        counts += [end for end in ends if 0 < end <= LARGEST_TRIED]
        return tuple(sorted({(n, own[1]) for n in batches} | {(own[0], s) for s in counts}))

    def because(self, axis: int, cause: str) -> Capture:
        """Return a copy with the cause that fixes or limits an axis; an empty one is not kept."""
        return replace(self, causes={**self.causes, axis: cause}) if cause else self

    def described_causes(self) -> dict[str, str]:
        """Return the causes by the name of the axis, ``batch`` or ``frames``."""
        names = {BATCH_AXIS: "batch", FRAME_AXIS: "frames"}
        return {name: self.causes[axis] for axis, name in names.items() if axis in self.causes}

    def pin(self, axes: Iterable[int]) -> Capture:
        """Return a copy in which some free dimensions are fixed: one sequence, `PINNED_FRAMES` frames."""
        free = self.free_axes.intersection(axes)
        return replace(
            self,
            batch=PINNED_BATCH if BATCH_AXIS in free else self.batch,
            frame_counts=FrameCounts.exactly(PINNED_FRAMES) if FRAME_AXIS in free else self.frame_counts,
        )
