"""One spelling for maxima: those that also give indices, and pooling that states what comes out.

Only maxima whose values alone are read can be computed on integers; networks mostly write
``torch.max(features, dim)[0]``, which gives indices, too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from qgait_ptq.graph.attributes import remove_unused
from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.shapes import is_free, observed_shape

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


def unify_maxima(graph_module: fx.GraphModule) -> None:
    """Rewrite a captured graph, whose shapes and free axes are recorded, in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not operator.getitem or node.args[1] != 0:
            continue
        source = node.args[0]
        with graph.inserting_before(node):
            values = _values_only(graph, source) if isinstance(source, fx.Node) else None
        if values is not None:
            node.replace_all_uses_with(values)
    remove_unused(graph_module)


def _values_only(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The same maximum without indices; None where a node is none that is known."""
    if is_operator(node, MAXIMA_WITH_INDICES):
        features, axis, *keep = node.args
        return graph.call_function(aten.amax.default, (features, [axis], *keep), dict(node.kwargs))
    if is_operator(node, frozenset(POOLS_WITH_INDICES)):
        return graph.call_function(POOLS_WITH_INDICES[node.target], node.args, dict(node.kwargs))
    if is_operator(node, frozenset(ADAPTIVE_POOLS)):
        kernel = _kernel(node)
        if kernel is not None:
            return graph.call_function(ADAPTIVE_POOLS[node.target], (node.args[0], kernel, kernel))
    return None


def _kernel(pool: fx.Node) -> list[int] | None:
    """Kernel, and stride, of an adaptive pooling whose windows are all equal; None where they are not."""
    source, wanted = pool.args
    shape = observed_shape(source)
    if shape is None or not isinstance(source, fx.Node) or not isinstance(wanted, (list, tuple)):
        return None
    first = len(shape) - len(wanted)
    kernel = []
    for axis, (size, count) in enumerate(zip(shape[first:], wanted, strict=True), first):
        if not isinstance(count, int) or size % count or is_free(source, axis):
            return None
        kernel.append(size // count)
    return kernel
