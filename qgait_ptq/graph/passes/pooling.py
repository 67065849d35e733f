"""Rewriting adaptive pooling in forms that exporters write, over any number of frames.

Adaptive pooling treats each axis separately. An axis that becomes one value is a mean or a maximum. An axis
that keeps its size has windows of one entry. Of any other axis, each window is a slice with computed bounds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.passes.size_arithmetic import Size, add, floor_divide, multiply, size_of
from qgait_ptq.graph.shapes import is_free, observed_integer, observed_shape
from qgait_ptq.graph.views import argument, source

AVERAGES: dict[Any, Callable[..., object]] = {
    aten.adaptive_avg_pool1d.default: aten.avg_pool1d.default,
    aten.adaptive_avg_pool2d.default: aten.avg_pool2d.default,
    aten.adaptive_avg_pool3d.default: aten.avg_pool3d.default,
}
MAXIMA: dict[Any, Callable[..., object]] = {  # they give values and indices
    aten.adaptive_max_pool1d.default: aten.max_pool1d.default,
    aten.adaptive_max_pool2d.default: aten.max_pool2d.default,
    aten.adaptive_max_pool3d.default: aten.max_pool3d.default,
}
SIZES = frozenset({aten.sym_size.int})
MOST_SLICES = 64  # of a pooling; more would make the file slow


@dataclass(frozen=True)
class Windows:
    """Windows of an adaptive pooling.

    Attributes:
        reduced: axes that become one value.
        sliced: axes that are cut into slices, with the number of slices: those of any size, and those whose
            windows differ.
        kernel: entries of a window along each pooled axis, after the steps above.
    """

    reduced: list[int]
    sliced: dict[int, int]
    kernel: list[int]


def adaptive_pools_over_frames(graph_module: fx.GraphModule) -> None:
    """Replace adaptive pooling along axes of any size, or in windows of different sizes."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, frozenset({*AVERAGES, *MAXIMA})):
            continue
        windows = _windows(node)
        values = _values(node)
        if windows is None or not values:
            continue
        with graph.inserting_before(node):
            pooled = _pooled(graph, node, windows)
        for value in values:
            value.replace_all_uses_with(pooled)


def _values(node: fx.Node) -> list[fx.Node]:
    """Return the nodes of the pooled values; none if the indices of maxima are used."""
    if node.target in AVERAGES:
        return [node]
    results = list(node.users)
    return results if all(user.target is operator.getitem and user.args[1] == 0 for user in results) else []


def _windows(node: fx.Node) -> Windows | None:
    """Return the windows of a pooling; None where exporters write it as it is, or it has too many windows."""
    features, counts = source(node), argument(node, "output_size")
    shape = observed_shape(features)
    if not shape:
        return None
    axes = range(len(shape) - len(counts), len(shape))
    windows, free = Windows([], {}, []), any(is_free(features, axis) for axis in axes)
    for axis, count in zip(axes, counts, strict=True):
        kernel = 1
        if not isinstance(count, int):
            if not _keeps(count, shape[axis]):
                return None
        elif count == 1 and free:
            windows.reduced.append(axis)
        elif is_free(features, axis) or shape[axis] % count:
            windows.sliced[axis] = count
        else:
            kernel = shape[axis] // count
        windows.kernel.append(kernel)
    few = sum(windows.sliced.values()) <= MOST_SLICES
    return windows if few and (free or windows.sliced) else None


def _keeps(count: int | fx.Node, size: int) -> bool:
    """Return whether the count of windows along a free axis is the size of that axis."""
    if not is_operator(count, SIZES) or observed_integer(count) != size:
        return False
    return is_free(source(count), argument(count, "dim"))  # type: ignore[arg-type]  # a node, see above


def _pooled(graph: fx.Graph, node: fx.Node, windows: Windows) -> fx.Node:
    """Insert the reduction, the slices, and the pooling of the other axes."""
    features, averages = source(node), node.target in AVERAGES
    reduce = aten.mean.dim if averages else aten.amax.default
    pieces = {axis: _slices(graph, features, axis, count) for axis, count in windows.sliced.items()}
    if windows.reduced:
        features = graph.call_function(reduce, (features, windows.reduced, True))
    for axis, bounds in pieces.items():
        slices = [graph.call_function(aten.slice.Tensor, (features, axis, *ends)) for ends in bounds]
        values = [graph.call_function(reduce, (piece, [axis], True)) for piece in slices]
        features = graph.call_function(aten.cat.default, (values, axis))
    if all(entries == 1 for entries in windows.kernel):
        return features
    pool = (AVERAGES if averages else MAXIMA)[node.target]
    return graph.call_function(pool, (features, windows.kernel, windows.kernel))


def _slices(graph: fx.Graph, tensor: fx.Node, axis: int, count: int) -> list[tuple[Size, Size]]:
    """Return the bounds of the windows along an axis, as torch cuts them; they can overlap."""
    length = size_of(graph, tensor, axis)
    starts = [floor_divide(graph, multiply(graph, length, index), count) for index in range(count)]
    ends = [
        floor_divide(graph, add(graph, multiply(graph, length, index + 1), count - 1), count)
        for index in range(count)
    ]
    return list(zip(starts, ends, strict=True))


ADAPTIVE_POOLS_OVER_FRAMES = GraphPass(
    "adaptive-pools-over-frames", adaptive_pools_over_frames, needs_free_axes=True
)
