"""Weighted layers that can be quantized, and the reasons why others stay in float."""

from __future__ import annotations

import torch
from torch import fx

from qgait_ptq.graph.annotation import PlacementRules
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.operators import is_operator
from qgait_ptq.graph.shapes import observed_dtype
from qgait_ptq.graph.views import WeightedLayer


def weighted_layers(graph_module: fx.GraphModule, rules: PlacementRules) -> list[fx.Node]:
    """Return the layers that can be quantized, in graph order."""
    return [
        node
        for node in graph_module.graph.nodes
        if is_operator(node, rules.weighted) and not why_in_float(graph_module, node)
    ]


def why_in_float(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """Return why a weighted layer cannot be quantized; empty if it can."""
    layer = WeightedLayer(node)
    if tensor_of(graph_module, layer.weight) is None:
        return "its weight is computed, not stored"
    if tensor_of(graph_module, layer.input) is not None:
        return "its input is a stored tensor, which no quantizer observes"
    dtype = observed_dtype(layer.input)
    if dtype not in (None, torch.float32):
        return f"it computes in {str(dtype).removeprefix('torch.')}"
    return ""
