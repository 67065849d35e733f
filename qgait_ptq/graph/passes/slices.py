"""Rewriting pieces as slices, and stacks as concatenations, which have integer kernels."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.passes.size_arithmetic import Size, add, add_sizes, floor_divide, multiply, size_of
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import argument, operands, source

SPLITS = frozenset(
    {
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.tensor_split.sections,
        aten.unbind.int,
    }
)
STACKS = frozenset({aten.stack.default})
SIZES: dict[Any, str] = {
    aten.split.Tensor: "split_size",
    aten.split_with_sizes.default: "split_sizes",
    aten.chunk.default: "chunks",
    aten.tensor_split.sections: "sections",
}


def pieces_to_slices(graph_module: fx.GraphModule) -> None:
    """Turn the pieces of ``split``, ``chunk``, ``tensor_split`` and ``unbind`` into slices and selections."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not operator.getitem:
            continue
        pieces, index = operands(node)
        if not is_operator(pieces, SPLITS) or observed_shape(source(pieces)) is None:
            continue
        with graph.inserting_before(node):
            replacement = _piece(graph, pieces, index)
        if replacement is not None:
            node.replace_all_uses_with(replacement)


def _piece(graph: fx.Graph, pieces: fx.Node, index: int) -> fx.Node | None:
    """Insert the slice that equals a piece; return None if its bounds depend on the input."""
    tensor, axis = source(pieces), argument(pieces, "dim")
    if pieces.target is aten.unbind.int:
        return graph.call_function(aten.select.int, (tensor, axis, index))
    sizes: Any = argument(pieces, SIZES[pieces.target])
    if any(isinstance(size, fx.Node) for size in (sizes if isinstance(sizes, (list, tuple)) else (sizes,))):
        return None  # computed from the batch size or the frame count
    bounds: tuple[Size, Size]
    if isinstance(sizes, (list, tuple)):
        bounds = (sum(sizes[:index]), sum(sizes[: index + 1]))
    elif pieces.target is aten.tensor_split.sections:
        bounds = _section(graph, size_of(graph, tensor, axis), sizes, index)
    else:
        step: Size = int(sizes)
        if pieces.target is aten.chunk.default:  # rounded up
            step = floor_divide(graph, add(graph, size_of(graph, tensor, axis), sizes - 1), sizes)
        bounds = (multiply(graph, step, index), multiply(graph, step, index + 1))
    return graph.call_function(aten.slice.Tensor, (tensor, axis, *bounds))


def _section(graph: fx.Graph, length: Size, sections: int, index: int) -> tuple[Size, Size]:
    """Return the bounds of a section; the first ones have one entry more where lengths are not equal."""
    start: Size = 0
    for position in range(index + 1):
        entries = floor_divide(graph, add(graph, length, sections - 1 - position), sections)
        start, before = add_sizes(graph, start, entries), start
    return before, start


def stacks_to_concatenations(graph_module: fx.GraphModule) -> None:
    """Turn ``stack`` into a concatenation along a new axis."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, STACKS):
            continue
        tensors, axis = argument(node, "tensors"), argument(node, "dim")
        with graph.inserting_before(node):
            rows = [graph.call_function(aten.unsqueeze.default, (tensor, axis)) for tensor in tensors]
            node.replace_all_uses_with(graph.call_function(aten.cat.default, (rows, axis)))


PIECES_TO_SLICES = GraphPass("pieces-to-slices", pieces_to_slices, needs_free_axes=True)
STACKS_TO_CONCATENATIONS = GraphPass("stacks-to-concatenations", stacks_to_concatenations)
