"""Converting a graph to another precision or device, including constants in its nodes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qgait_ptq.graph.operators import aten, is_operator

# Operators that create tensors of torch's default type if no type is given.
FACTORIES = frozenset(
    {aten.zeros.default, aten.ones.default, aten.empty.memory_format, aten.eye.default, aten.eye.m}
)


def in_double(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy that computes in float64, also where the network itself sets float32.

    Integer kernels sum exactly, so they are compared with float64.
    """
    double = copy.deepcopy(graph_module).double()
    _replace(double, lambda value: torch.float64 if value is torch.float32 else value)
    for node in double.graph.nodes:
        if is_operator(node, FACTORIES) and node.kwargs.get("dtype") is None:
            node.kwargs = {**node.kwargs, "dtype": torch.float64}
    double.recompile()
    return double


def to_device(graph_module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Move a graph in place: its parameters and the tensors that its nodes create, such as masks."""
    _replace(graph_module, lambda value: device if isinstance(value, torch.device) else value)
    graph_module.recompile()
    return graph_module.to(device)


def _replace(graph_module: fx.GraphModule, change: Callable[[Any], Any]) -> None:
    """Replace constants in the arguments of all nodes."""
    for node in graph_module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, change)
        node.kwargs = {name: fx.node.map_aggregate(value, change) for name, value in node.kwargs.items()}
