"""Arithmetic on sizes in a graph: plain numbers where a size is fixed, nodes where it is not."""

from __future__ import annotations

import operator

from torch import fx

from qgait_ptq.graph.operators import aten
from qgait_ptq.graph.shapes import is_free, observed_shape
from qgait_ptq.system.invariants import present

Size = int | fx.Node


def size_of(graph: fx.Graph, tensor: fx.Node, axis: int) -> Size:
    """Return the size of an axis. A size that depends on batch or frames is a new node.

    Args:
        graph: graph of the tensor; nodes are inserted at its insertion point.
        tensor: node with recorded shapes and free axes.
        axis: axis of the tensor.
    """
    if not is_free(tensor, axis):
        return present(observed_shape(tensor))[axis]
    return graph.call_function(aten.sym_size.int, (tensor, axis))


def add(graph: fx.Graph, first: Size, second: int) -> Size:
    """Return a size plus a number."""
    if isinstance(first, int):
        return first + second
    return first if second == 0 else graph.call_function(operator.add, (first, second))


def add_sizes(graph: fx.Graph, first: Size, second: Size) -> Size:
    """Return the sum of two sizes."""
    if isinstance(second, int):
        return add(graph, first, second)
    return (
        add(graph, second, first)
        if isinstance(first, int)
        else graph.call_function(operator.add, (first, second))
    )


def multiply(graph: fx.Graph, size: Size, factor: int) -> Size:
    """Return a size times a number."""
    if isinstance(size, int):
        return size * factor
    if factor in (0, 1):
        return size if factor else 0
    return graph.call_function(operator.mul, (size, factor))


def floor_divide(graph: fx.Graph, size: Size, divisor: int) -> Size:
    """Return a size divided by a number, rounded down."""
    if isinstance(size, int):
        return size // divisor
    return size if divisor == 1 else graph.call_function(operator.floordiv, (size, divisor))
