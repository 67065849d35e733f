"""Converting a graph to another precision or device, including constants in its nodes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class DoubleGraph:
    """A graph that computes in float64. Calls take float64.

    Attributes:
        graph_module: its graph, which runs within `float64_by_default`.
    """

    graph_module: fx.GraphModule

    def __call__(self, *inputs: Any) -> Any:
        """Return the output of the graph."""
        with float64_by_default():
            return self.graph_module(*inputs)


@contextmanager
def float64_by_default() -> Iterator[None]:
    """Give float64 to tensors that are created without a type, and to quotients of integers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_double(graph_module: fx.GraphModule) -> DoubleGraph:
    """Return a copy that computes in float64, also where the network itself sets float32.

    Integer kernels sum exactly, so they are compared with float64.
    """
    double = copy.deepcopy(graph_module).double()
    _replace(double, lambda value: torch.float64 if value is torch.float32 else value)
    double.recompile()
    return DoubleGraph(double)


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
