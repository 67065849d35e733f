"""What each node gives on a concrete example: shapes, sizes and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.graph.operators import CONVOLUTIONS, WEIGHTED, is_operator

SHAPE_KEY, DTYPE_KEY, INTEGER_KEY = "qgait.shape", "qgait.dtype", "qgait.integer"
FREE_KEY = "qgait.free_axes"


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
            n.meta[SHAPE_KEY], n.meta[DTYPE_KEY] = tuple(result.shape), result.dtype
        elif isinstance(result, int):
            n.meta[INTEGER_KEY] = result
        return result


def record_shapes(graph_module: fx.GraphModule, example: Tensor) -> None:
    """Record the shapes of all nodes on an example ``[n, s, h, w]``."""
    with torch.inference_mode():
        ShapeRecorder(graph_module).run(example)


def record_free_axes(graph_module: fx.GraphModule, examples: Sequence[Tensor]) -> None:
    """Record which axes of each node's tensor depend on the batch size or the frame count.

    Args:
        graph_module: any.
        examples: silhouettes ``[n, s, h, w]`` of different batch sizes and frame counts; the shapes of the
            first stay recorded.
    """
    shapes: dict[fx.Node, list[tuple[int, ...]]] = {}
    for example in reversed(examples):
        record_shapes(graph_module, example)
        for node in graph_module.graph.nodes:
            shapes.setdefault(node, []).append(observed_shape(node) or ())
    for node, found in shapes.items():
        sizes = zip(*found, strict=True) if len({len(shape) for shape in found}) == 1 else ()
        node.meta[FREE_KEY] = frozenset(axis for axis, size in enumerate(sizes) if len(set(size)) > 1)


def is_free(node: fx.Node, axis: int) -> bool:
    """Whether an axis of a node's tensor depends on the batch size or the frame count."""
    return axis % len(observed_shape(node) or (0,)) in node.meta.get(FREE_KEY, frozenset())


def observed_shape(node: object) -> tuple[int, ...] | None:
    """Shape that a node gave on the example; None before `record_shapes` or where it gives no tensor."""
    shape: tuple[int, ...] | None = node.meta.get(SHAPE_KEY) if isinstance(node, fx.Node) else None
    return shape


def observed_dtype(node: object) -> torch.dtype | None:
    """Type of the tensor that a node gave on the example; None as of `observed_shape`."""
    dtype: torch.dtype | None = node.meta.get(DTYPE_KEY) if isinstance(node, fx.Node) else None
    return dtype


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
