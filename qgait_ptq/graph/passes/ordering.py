"""Rewriting medians and k-th smallest values as selections from sorted values, which ONNX has."""

from __future__ import annotations

import operator

from torch import fx

from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.passes.size_arithmetic import Size, add, floor_divide, size_of
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import argument, source

MEDIANS = frozenset({aten.median.dim})
ORDER_STATISTICS = MEDIANS | {aten.kthvalue.default}


def order_statistics_to_sort(graph_module: fx.GraphModule) -> None:
    """Replace medians and k-th smallest values whose indices are not used."""
    for node in list(graph_module.graph.nodes):
        if not is_operator(node, ORDER_STATISTICS) or not observed_shape(source(node)):
            continue
        results = [(user, user.args[1]) for user in node.users if user.target is operator.getitem]
        if len(results) < len(node.users) or any(index != 0 for _, index in results):
            continue  # among equal values, the index of another implementation can differ
        with graph_module.graph.inserting_before(node):
            value = _selected(graph_module.graph, node)
        for user, _ in results:
            user.replace_all_uses_with(value)


def _selected(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Insert the sorted values, and the choice of the one that a node gives."""
    tensor, axis = source(node), argument(node, "dim")
    axis %= len(observed_shape(tensor) or ())
    ordered = graph.call_function(aten.sort.default, (tensor, axis))
    values = graph.call_function(operator.getitem, (ordered, 0))
    value = graph.call_function(aten.select.int, (values, axis, _position(graph, node, tensor, axis)))
    if argument(node, "keepdim"):
        value = graph.call_function(aten.unsqueeze.default, (value, axis))
    return value


def _position(graph: fx.Graph, node: fx.Node, tensor: fx.Node, axis: int) -> Size:
    """Return the position in sorted values: of two middle values, torch's median is the lower one."""
    if is_operator(node, MEDIANS):
        return floor_divide(graph, add(graph, size_of(graph, tensor, axis), -1), 2)
    position: Size = argument(node, "k")
    return add(graph, position, -1)


ORDER_STATISTICS_TO_SORT = GraphPass(
    "order-statistics-to-sort", order_statistics_to_sort, needs_free_axes=True
)
