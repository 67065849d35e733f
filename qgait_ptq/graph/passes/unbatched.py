"""Layers on inputs without a batch axis, such as a vector, with an axis of one."""

from __future__ import annotations

from torch import fx

from qgait_ptq.graph.operators import CONVOLUTIONS, WEIGHTED, aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import argument


def add_batch_axes(graph_module: fx.GraphModule) -> None:
    """Give each convolution and linear layer the batch axis that other passes and the runtimes expect."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, WEIGHTED):
            continue
        features = argument(node, "input")
        shape, weight = observed_shape(features), observed_shape(argument(node, "weight"))
        if shape is None or weight is None:
            continue
        if len(shape) == (len(weight) - 1 if is_operator(node, CONVOLUTIONS) else 1):
            with graph.inserting_before(node):
                batch = graph.call_function(aten.unsqueeze.default, (features, 0))
                layer = graph.call_function(node.target, (batch, *node.args[1:]), dict(node.kwargs))
                node.replace_all_uses_with(graph.call_function(aten.squeeze.dim, (layer, 0)))


ADD_BATCH_AXES = GraphPass("add-batch-axes", add_batch_axes)
