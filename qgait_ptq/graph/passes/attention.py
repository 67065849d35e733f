"""Attention with an axis of heads, because exporters only support PyTorch's operator with four axes."""

from __future__ import annotations

from torch import fx

from qgait_ptq.graph.operators import ATTENTIONS, aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import argument

TENSORS = 3  # query, key, value: the first arguments


def attention_to_four_axes(graph_module: fx.GraphModule) -> None:
    """Give attention on three axes an axis of one head."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        shape = observed_shape(node) if is_operator(node, ATTENTIONS) else None
        if shape is None or len(shape) != 3:
            continue
        with graph.inserting_before(node):
            heads = [graph.call_function(aten.unsqueeze.default, (part, 1)) for part in node.args[:TENSORS]]
            attended = graph.call_function(node.target, (*heads, *node.args[TENSORS:]), dict(node.kwargs))
            mask = argument(node, "attn_mask")
            if isinstance(mask, fx.Node) and len(observed_shape(mask) or ()) == 3:  # of each sequence
                with graph.inserting_before(attended):
                    attended.replace_input_with(mask, graph.call_function(aten.unsqueeze.default, (mask, 1)))
            node.replace_all_uses_with(graph.call_function(aten.squeeze.dim, (attended, 1)))


ATTENTION_TO_FOUR_AXES = GraphPass("attention-to-four-axes", attention_to_four_axes)
