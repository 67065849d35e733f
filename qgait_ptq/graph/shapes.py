"""What each node gives on a concrete example: shapes, sizes and multiply-accumulates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.graph.operators import CONVOLUTIONS, WEIGHTED, is_operator

SHAPE_KEY, INTEGER_KEY = "qgait.shape", "qgait.integer"


class ShapeRecorder(fx.Interpreter):
    """Writes the shape of each tensor, and the value of each size, into the nodes' ``meta``.

    Example:
        >>> module = fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU()))
        >>> _ = ShapeRecorder(module).run(torch.zeros(2, 3))
        >>> [observed_shape(node) for node in module.graph.nodes if node.op == "call_module"]
        [(2, 3)]
    """

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and record what it gives."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta[SHAPE_KEY] = tuple(result.shape)
        elif isinstance(result, int):
            n.meta[INTEGER_KEY] = result
        return result


def record_shapes(graph_module: fx.GraphModule, example: Tensor) -> None:
    """Record the shapes of all nodes on an example ``[n, s, h, w]``."""
    with torch.inference_mode():
        ShapeRecorder(graph_module).run(example)


def observed_shape(node: object) -> tuple[int, ...] | None:
    """Shape that a node gave on the example; None before `record_shapes` or where it gives no tensor."""
    shape: tuple[int, ...] | None = node.meta.get(SHAPE_KEY) if isinstance(node, fx.Node) else None
    return shape


def observed_integer(argument: object) -> int:
    """A size argument as a number: itself, or what its node gave on the example."""
    return int(argument.meta[INTEGER_KEY]) if isinstance(argument, fx.Node) else int(argument)  # type: ignore[call-overload]


def count_macs(node: fx.Node) -> int:
    """Multiply-accumulates of a weighted layer on the recorded example; 0 for other nodes."""
    output, weight = observed_shape(node), observed_shape(node.args[1] if len(node.args) > 1 else None)
    if not is_operator(node, WEIGHTED) or output is None or weight is None:
        return 0
    per_output = math.prod(weight[1:]) if is_operator(node, CONVOLUTIONS) else weight[-1]
    return math.prod(output) * per_output
