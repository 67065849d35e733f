"""Comparison of a captured graph with the network at one size, and the sizes at which they agree."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from enum import Enum, auto

import torch
from torch import Tensor, fx, nn

from qgait_ptq.capture.guards import SizeGuards, agreeing_sizes
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.network_input import random_silhouettes

Size = tuple[int, int]  # sequences, frames
TOLERANCE = 1e-4  # relative to the largest value of the embedding
SMALL = 64  # frames: longer sequences are compared one at a time, so that they fit into memory
DRAWS = 8  # of random sequences, where one could agree by accident
LONGEST_REPEATED = 16  # frames: up to here, it is tried whether the network repeats short sequences


class Comparison(Enum):
    """Result of a comparison at one size."""

    AGREES = auto()
    DIFFERS = auto()
    REFUSED = auto()  # the network itself does not take this size


@dataclass(frozen=True)
class Comparer:
    """A network and its graph.

    Attributes:
        network: network with input ``[n, s, *frame_shape]``.
        graph_module: graph with the same input.
        frame_shape: shape of one frame.
        compared: results so far by size, since each size is compared once.
        outputs: embeddings of the graph at the sizes where it agrees.
    """

    network: nn.Module
    graph_module: fx.GraphModule
    frame_shape: tuple[int, ...]
    compared: dict[Size, Comparison] = field(default_factory=dict)
    outputs: dict[Size, Tensor] = field(default_factory=dict)

    def compare(self, size: Size) -> Comparison:
        """Compare the embeddings of random silhouettes.

        Args:
            size: batch size and frame count.
        """
        if size not in self.compared:
            silhouettes = random_silhouettes(*size, self.frame_shape)
            self.compared[size], output = self._compare(silhouettes, silhouettes)
            if output is not None:
                self.outputs[size] = output
        return self.compared[size]

    def _compare(self, silhouettes: Tensor, for_graph: Tensor) -> tuple[Comparison, Tensor | None]:
        """Return the result, and the embedding of the graph if it agrees."""
        expected = _run(self.network, silhouettes.clone())  # a network can write to its input
        if expected is None:
            return Comparison.REFUSED, None
        actual = _run_graph(self.graph_module, for_graph)
        if actual is None or not are_close(actual, expected):
            return Comparison.DIFFERS, None
        return Comparison.AGREES, actual

    def frame_counts(self, guards: SizeGuards, batch: int, captured: int) -> FrameCounts:
        """Return the frame counts at which the graph computes what the network does.

        Args:
            guards: guards on the frame count.
            batch: batch size to compare at.
            captured: frame count of the capture.
        """

        def agrees(count: int) -> bool:
            size = (batch if count <= SMALL else 1, count)
            return self.compare(size) is Comparison.AGREES

        shortest, longest = agreeing_sizes(guards.segments(), captured, agrees)
        # Guards are silent about 1, and a network may refuse what is shorter than its kernels: all are tried.
        refused = [count for count in range(shortest, captured) if not agrees(count)]
        shortest = max(refused, default=shortest - 1) + 1
        return FrameCounts(shortest, longest, self._repeats(FrameCounts(shortest, longest), batch))

    def batch_is_free(self, guards: SizeGuards, captured: int, frames: int) -> bool:
        """Return whether the graph computes what the network does at every batch size."""

        def agrees(batch: int) -> bool:
            return self.compare((batch, frames)) is Comparison.AGREES

        return agreeing_sizes(guards.segments(), captured, agrees) == (1, None)

    def _repeats(self, counts: FrameCounts, batch: int) -> dict[int, int]:
        """Return shorter frame counts with how often the network itself repeats the sequence."""
        repeats = {}
        for count in range(1, min(counts.shortest, LONGEST_REPEATED + 1)):
            fewest = math.ceil(counts.shortest / count)
            for times in (fewest, fewest + 1, fewest + 2):
                if counts.takes(times * count) and self._is_repeated(batch, count, times):
                    repeats[count] = times
                    break
        return repeats

    def _is_repeated(self, batch: int, count: int, times: int) -> bool:
        """Return whether the network computes for short sequences what the graph does for repeated ones.

        With several draws: a maximum over frames often hides what only some frames differ by.
        """
        generator = torch.Generator().manual_seed(count)
        for _ in range(DRAWS):
            silhouettes = torch.rand(batch, count, *self.frame_shape, generator=generator)
            repeated = torch.cat([silhouettes] * times, 1)
            if self._compare(silhouettes, repeated)[0] is not Comparison.AGREES:
                return False
        return True


def are_close(actual: Tensor, expected: Tensor) -> bool:
    """Return whether two embeddings have the same shape and are equal within `TOLERANCE`."""
    if actual.shape != expected.shape:
        return False
    scale = expected.abs().max().clamp_min(1e-6)
    return bool((actual - expected).abs().max() <= TOLERANCE * scale)


def _run_graph(graph_module: fx.GraphModule, silhouettes: Tensor) -> Tensor | None:
    """Run a graph; where it fails, torch prints its code, which a user cannot act on."""
    with redirect_stderr(io.StringIO()):
        return _run(graph_module, silhouettes)


def _run(network: Callable[[Tensor], Tensor], silhouettes: Tensor) -> Tensor | None:
    try:
        with torch.inference_mode():
            return network(silhouettes)
    except Exception:  # whatever a network raises at a size that it does not take
        return None
