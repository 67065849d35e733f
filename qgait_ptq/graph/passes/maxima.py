"""Rewriting maxima without indices or without axes, and adaptive pooling with a fixed kernel.

Maxima can run on integers only if their indices are not used. Most networks write
``torch.max(features, dim)[0]``, which also gives indices. ``features.max()`` and ``features.amax()`` name no
axes and mean all of them; torch's ONNX exporter needs their names.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import is_free, observed_shape
from qgait_ptq.graph.views import argument, operands, source

EXTREMES = frozenset({aten.amax.default, aten.amin.default})
WITHOUT_AXES: dict[Any, Callable[..., object]] = {
    aten.max.default: aten.amax.default,
    aten.min.default: aten.amin.default,
}
MAXIMA_WITH_INDICES = frozenset({aten.max.dim})
POOLS_WITH_INDICES: dict[Any, Callable[..., object]] = {
    aten.max_pool2d_with_indices.default: aten.max_pool2d.default,
    aten.max_pool3d_with_indices.default: aten.max_pool3d.default,
}
ADAPTIVE_POOLS: dict[Any, Callable[..., object]] = {
    aten.adaptive_max_pool1d.default: aten.max_pool1d.default,
    aten.adaptive_max_pool2d.default: aten.max_pool2d.default,
    aten.adaptive_max_pool3d.default: aten.max_pool3d.default,
}


def drop_maxima_indices(graph_module: fx.GraphModule) -> None:
    """Replace maxima whose indices are not used by maxima without indices."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not operator.getitem:
            continue
        maximum, result = operands(node)
        if result != 0 or not isinstance(maximum, fx.Node):
            continue
        with graph.inserting_before(node):
            values = _values_only(graph, maximum)
        if values is not None:
            node.replace_all_uses_with(values)


def _values_only(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Insert the same maximum without indices; return None if the node is not a supported maximum."""
    if is_operator(node, MAXIMA_WITH_INDICES):
        axes, keeps = [argument(node, "dim")], argument(node, "keepdim")
        return graph.call_function(aten.amax.default, (source(node), axes, *([keeps] if keeps else [])))
    if is_operator(node, frozenset(POOLS_WITH_INDICES)):
        return graph.call_function(POOLS_WITH_INDICES[node.target], node.args, dict(node.kwargs))
    if is_operator(node, frozenset(ADAPTIVE_POOLS)):
        kernel = _kernel(node)
        if kernel is not None:
            return graph.call_function(ADAPTIVE_POOLS[node.target], (source(node), kernel, kernel))
    return None


def _kernel(pool: fx.Node) -> list[int] | None:
    """Return kernel and stride of an adaptive pooling with equal windows; None if windows differ."""
    features, counts = source(pool), argument(pool, "output_size")
    shape = observed_shape(features)
    if shape is None or not isinstance(counts, (list, tuple)):
        return None
    first = len(shape) - len(counts)
    kernel = []
    for axis, (size, count) in enumerate(zip(shape[first:], counts, strict=True), first):
        if not isinstance(count, int) or size % count or is_free(features, axis):
            return None
        kernel.append(size // count)
    return kernel


def name_all_axes(graph_module: fx.GraphModule) -> None:
    """Give maxima and minima over all axes, which name none, the list of the axes."""
    for node in graph_module.graph.nodes:
        if is_operator(node, frozenset(WITHOUT_AXES)) and observed_shape(source(node)):
            node.target = WITHOUT_AXES[node.target]
        if not is_operator(node, EXTREMES) or list(argument(node, "dim")):
            continue
        shape = observed_shape(source(node))
        if shape:
            node.args = (source(node), list(range(len(shape))), argument(node, "keepdim"))
            node.kwargs = {}


NAME_ALL_AXES = GraphPass("name-all-axes", name_all_axes)
DROP_MAXIMA_INDICES = GraphPass("drop-maxima-indices", drop_maxima_indices, needs_free_axes=True)
