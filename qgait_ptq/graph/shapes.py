"""Recorded shapes and sizes of each node on a concrete example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.graph.recorder import run_recorded

SHAPE_KEY, DTYPE_KEY, INTEGER_KEY = "qgait.shape", "qgait.dtype", "qgait.integer"
FREE_KEY = "qgait.free_axes"


def record_shapes(graph_module: fx.GraphModule, example: Tensor) -> Any:
    """Write the shape of each tensor, and the value of each size, into the ``meta`` of the nodes.

    Args:
        graph_module: graph whose nodes get the records.
        example: silhouettes ``[n, s, h, w]``.

    Returns:
        The output of the graph.

    Example:
        >>> module = fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU()))
        >>> _ = record_shapes(module, torch.zeros(2, 3))
        >>> [observed_shape(node) for node in module.graph.nodes if node.op == "call_module"]
        [(2, 3)]
    """

    def record(node: fx.Node, value: object) -> None:
        if isinstance(value, Tensor):
            node.meta[SHAPE_KEY], node.meta[DTYPE_KEY] = tuple(value.shape), value.dtype
        elif isinstance(value, int):
            node.meta[INTEGER_KEY] = value

    with torch.inference_mode():
        return run_recorded(graph_module, example, record)


def record_free_axes(graph_module: fx.GraphModule, examples: Sequence[Tensor]) -> None:
    """Record the axes of each node's tensor that depend on the batch size or the frame count.

    Args:
        graph_module: graph whose nodes get the records.
        examples: silhouettes ``[n, s, h, w]`` of different batch sizes and frame counts. The shapes of the
            first stay recorded.
    """
    shapes: dict[fx.Node, list[tuple[int, ...]]] = {}
    for example in reversed(examples):
        record_shapes(graph_module, example)
        for node in graph_module.graph.nodes:
            shapes.setdefault(node, []).append(observed_shape(node) or ())
    for node, observed in shapes.items():
        sizes = zip(*observed, strict=True) if len({len(shape) for shape in observed}) == 1 else ()
        node.meta[FREE_KEY] = frozenset(axis for axis, size in enumerate(sizes) if len(set(size)) > 1)


def is_free(node: fx.Node, axis: int) -> bool:
    """Return whether an axis of a node's tensor depends on the batch size or the frame count."""
    return axis % len(observed_shape(node) or (0,)) in node.meta.get(FREE_KEY, frozenset())


def observed_shape(node: object) -> tuple[int, ...] | None:
    """Return the recorded shape of a node's tensor; None before `record_shapes` or without a tensor."""
    shape: tuple[int, ...] | None = node.meta.get(SHAPE_KEY) if isinstance(node, fx.Node) else None
    return shape


def observed_dtype(node: object) -> torch.dtype | None:
    """Return the recorded type of a node's tensor; None in the same cases as `observed_shape`."""
    dtype: torch.dtype | None = node.meta.get(DTYPE_KEY) if isinstance(node, fx.Node) else None
    return dtype


def observed_integer(argument: object) -> int:
    """Return a size argument as a number: itself, or the recorded value of its node."""
    return int(argument.meta[INTEGER_KEY]) if isinstance(argument, fx.Node) else int(argument)  # type: ignore[call-overload]
