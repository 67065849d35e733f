"""Adding biases of zeros to layers without a bias: calibration changes biases, and they cost nothing."""

from __future__ import annotations

from torch import fx

from qgait_ptq.graph.attributes import add_parameter, origin, tensor_of
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.views import WeightedLayer


def add_missing_biases(graph_module: fx.GraphModule) -> None:
    """Give every layer with a stored weight and no bias a bias of zeros."""
    for node in list(graph_module.graph.nodes):
        layer = WeightedLayer.of(node)
        weight = None if layer is None else tensor_of(graph_module, layer.weight)
        if layer is None or weight is None or layer.bias is not None:
            continue
        owner = origin(layer.weight).rpartition(".")[0]
        path = f"{owner}.bias" if owner else "bias"
        bias = add_parameter(graph_module, node, path, weight.new_zeros(weight.shape[0]))
        layer.replace_parameters(layer.weight, bias)


ADD_MISSING_BIASES = GraphPass("add-missing-biases", add_missing_biases)
