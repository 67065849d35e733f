"""Folding operations on parameters only, such as reshapes, into new parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from qgait_ptq.graph.attributes import add_parameter, origin, tensor_of
from qgait_ptq.graph.passes.graph_pass import GraphPass

LARGEST_GROWTH = 2  # largest size of a folded parameter, as a multiple of its inputs


def fold_constants(graph_module: fx.GraphModule) -> None:
    """Compute values that depend on parameters only, such as a transposed or normalised weight."""
    for node in list(graph_module.graph.nodes):
        parameters = [tensor_of(graph_module, parameter) for parameter in node.all_input_nodes]
        if node.op != "call_function" or not parameters or any(value is None for value in parameters):
            continue
        function: Callable[..., object] = node.target
        arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda n: tensor_of(graph_module, n))
        with torch.no_grad():
            value = function(*arguments, **keywords)
        size = sum(parameter.numel() for parameter in parameters if parameter is not None)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() <= LARGEST_GROWTH * size:
            path = origin(node.all_input_nodes[0])
            node.replace_all_uses_with(add_parameter(graph_module, node, path, value.clone()))


FOLD_CONSTANTS = GraphPass("fold-constants", fold_constants)
