"""One spelling for each operation: what networks write in many ways is brought to the way later stages know.

Parameters that are only reshaped, normalised or combined before their use become parameters of their own;
pieces of a tensor become slices; stacking becomes concatenation; products with a stored matrix become linear
layers, and these see matrices. All exact.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.graph.attributes import add_parameter, origin, remove_unused, tensor_of
from qgait_ptq.graph.operators import MATRIX_PRODUCTS, aten, is_operator
from qgait_ptq.graph.passes.masks import masks_to_logic
from qgait_ptq.graph.passes.maxima import unify_maxima
from qgait_ptq.graph.shapes import is_free, observed_shape, record_free_axes, record_shapes
from qgait_ptq.system.invariants import of_type, present

LARGEST_GROWTH = 2  # a folded parameter may be so many times larger than what it was made of
WHOLE = 2**63 - 1  # where a slice without an end ends
SLICES, EINSUMS = frozenset({aten.slice.Tensor}), frozenset({aten.einsum.default})
SPLITS = frozenset({aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int})
STACKS = frozenset({aten.stack.default})
ATTENTIONS = frozenset({aten.scaled_dot_product_attention.default})
LINEAR = frozenset({aten.linear.default})


def unify_spelling(graph_module: fx.GraphModule, examples: Sequence[Tensor]) -> None:
    """Rewrite a captured graph in place.

    Args:
        graph_module: a captured network.
        examples: silhouettes ``[n, s, h, w]``; sizes are read from the first, and from the others which of
            them change.
    """
    record_free_axes(graph_module, examples)
    drop_whole_slices(graph_module)
    masks_to_logic(graph_module)
    unify_maxima(graph_module)
    attention_to_four_axes(graph_module)
    pieces_to_slices(graph_module)
    fold_constants(graph_module)
    einsum_to_matmul(graph_module)
    fold_constants(graph_module)  # weights that are permuted now
    stacks_to_concatenations(graph_module)
    record_shapes(graph_module, examples[0])
    products_to_linear(graph_module)
    record_shapes(graph_module, examples[0])
    linear_to_matrices(graph_module)
    remove_unused(graph_module)


def drop_whole_slices(graph_module: fx.GraphModule) -> None:
    """Remove slices that leave nothing out, such as the colons of ``x[:, :, i]``."""
    for node in list(graph_module.graph.nodes):
        if is_operator(node, SLICES):
            bounds: list[Any] = [*node.args[2:], None, None][:2]
            step = node.args[4] if len(node.args) > 4 else 1
            if bounds[0] in (None, 0) and bounds[1] in (None, WHOLE) and step == 1:
                node.replace_all_uses_with(node.args[0])
    remove_unused(graph_module)


def einsum_to_matmul(graph_module: fx.GraphModule) -> None:
    """Turn the products of ``einsum`` with a stored tensor into matrix products.

    Two are known: ``…c,cd->…d`` and, with one letter that all three share, ``npc,pcd->npd``; letters in any
    order.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, EINSUMS) or len(node.args[1]) != 2:
            continue
        features, weight = node.args[1]
        product = _parse_product(node.args[0])
        if product is None or tensor_of(graph_module, weight) is None:
            continue
        with graph.inserting_before(node):
            moved = graph.call_function(aten.permute.default, (features, product.features))
            matrix = graph.call_function(aten.permute.default, (weight, product.weight))
            given = graph.call_function(aten.matmul.default, (moved, matrix))
            back = graph.call_function(aten.permute.default, (given, product.result))
        node.replace_all_uses_with(back)
    remove_unused(graph_module)


@dataclass(frozen=True)
class _Product:
    """Orders of axes that make a matrix product of an einsum."""

    features: list[int]
    weight: list[int]
    result: list[int]


def _parse_product(equation: str) -> _Product | None:
    """Orders for an equation; None where it is no product of the known kinds."""
    inputs, _, result = equation.replace(" ", "").partition("->")
    left, _, right = inputs.partition(",")
    shared = [letter for letter in right if letter in left and letter in result]
    summed = [letter for letter in right if letter in left and letter not in result]
    new = [letter for letter in right if letter not in left]
    kept = [letter for letter in left if letter not in right]
    known = len(shared) == 0 or (len(shared) == 1 and len(kept) == 1)
    if not known or len(summed) != 1 or len(new) != 1 or sorted(result) != sorted([*shared, *kept, *new]):
        return None
    given = [*shared, *kept, *new]
    return _Product(
        [left.index(letter) for letter in (*shared, *kept, *summed)],
        [right.index(letter) for letter in (*shared, *summed, *new)],
        [given.index(letter) for letter in result],
    )


def attention_to_four_axes(graph_module: fx.GraphModule) -> None:
    """Give PyTorch's attention operator its axis of heads: exporters know it with four axes only."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        shape = observed_shape(node) if is_operator(node, ATTENTIONS) else None
        if shape is None or len(shape) != 3:
            continue
        with graph.inserting_before(node):
            heads = [graph.call_function(aten.unsqueeze.default, (part, 1)) for part in node.args[:3]]
            given = graph.call_function(node.target, (*heads, *node.args[3:]), dict(node.kwargs))
            node.replace_all_uses_with(graph.call_function(aten.squeeze.dim, (given, 1)))
    remove_unused(graph_module)


def fold_constants(graph_module: fx.GraphModule) -> None:
    """Compute what depends on parameters only, such as a transposed or normalised weight."""
    for node in list(graph_module.graph.nodes):
        sources = [tensor_of(graph_module, source) for source in node.all_input_nodes]
        if node.op != "call_function" or not sources or any(source is None for source in sources):
            continue
        function: Callable[..., object] = node.target
        arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda n: tensor_of(graph_module, n))
        with torch.no_grad():
            value = function(*arguments, **keywords)
        size = sum(source.numel() for source in sources if source is not None)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() <= LARGEST_GROWTH * size:
            path = origin(node.all_input_nodes[0])
            node.replace_all_uses_with(add_parameter(graph_module, node, path, value.clone()))
    remove_unused(graph_module)


def pieces_to_slices(graph_module: fx.GraphModule) -> None:
    """Turn the pieces of ``split``, ``chunk`` and ``unbind`` into slices and selections."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not operator.getitem:
            continue
        pieces, index = node.args
        if not is_operator(pieces, SPLITS) or observed_shape(pieces.args[0]) is None:
            continue
        with graph.inserting_before(node):
            replacement = _piece(graph, pieces, index)
        if replacement is not None:
            node.replace_all_uses_with(replacement)
    remove_unused(graph_module)


def _piece(graph: fx.Graph, pieces: fx.Node, index: int) -> fx.Node | None:
    source, shape = of_type(pieces.args[0], fx.Node), present(observed_shape(pieces.args[0]))
    if pieces.target is aten.unbind.int:
        return graph.call_function(aten.select.int, (source, pieces.args[1] if pieces.args[1:] else 0, index))
    sizes: Any = pieces.args[1]
    axis: Any = pieces.args[2] if len(pieces.args) > 2 else 0
    if any(isinstance(size, fx.Node) for size in (sizes if isinstance(sizes, (list, tuple)) else (sizes,))):
        return None  # computed from the batch size or the frame count
    if pieces.target is aten.chunk.default and is_free(source, axis):
        return None
    if isinstance(sizes, (list, tuple)):
        bounds = (sum(sizes[:index]), sum(sizes[: index + 1]))
    else:
        step = math.ceil(shape[int(axis)] / sizes) if pieces.target is aten.chunk.default else int(sizes)
        bounds = (index * step, (index + 1) * step)
    return graph.call_function(aten.slice.Tensor, (source, axis, *bounds))


def stacks_to_concatenations(graph_module: fx.GraphModule) -> None:
    """Turn ``stack`` into a concatenation along a new axis."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, STACKS):
            continue
        tensors, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
        with graph.inserting_before(node):
            rows = [graph.call_function(aten.unsqueeze.default, (tensor, axis)) for tensor in tensors]
            node.replace_all_uses_with(graph.call_function(aten.cat.default, (rows, axis)))
    remove_unused(graph_module)


def products_to_linear(graph_module: fx.GraphModule) -> None:
    """Turn ``matmul(x, W)`` with a stored matrix into a linear layer."""
    for node in list(graph_module.graph.nodes):
        if not is_operator(node, MATRIX_PRODUCTS):
            continue
        weight = tensor_of(graph_module, node.args[1])
        shape = observed_shape(node.args[0])
        if weight is None or weight.ndim != 2 or shape is None or len(shape) < 2:
            continue
        parameter = add_parameter(graph_module, node, origin(node.args[1]), weight.T)
        with graph_module.graph.inserting_before(node):
            linear = graph_module.graph.call_function(aten.linear.default, (node.args[0], parameter, None))
        node.replace_all_uses_with(linear)
    remove_unused(graph_module)


def linear_to_matrices(graph_module: fx.GraphModule) -> None:
    """Let linear layers over tokens ``[n, t, c]`` see matrices ``[n·t, c]``: these have integer kernels."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        shape = observed_shape(node.args[0]) if is_operator(node, LINEAR) else None
        if shape is None or len(shape) < 3 or tensor_of(graph_module, node.args[1]) is None:
            continue
        features, rest = node.args[0], node.args[1:]
        with graph.inserting_before(node):
            sizes = [
                graph.call_function(aten.sym_size.int, (features, axis)) for axis in range(len(shape) - 1)
            ]
            rows = graph.call_function(aten.reshape.default, (features, [-1, shape[-1]]))
            given = graph.call_function(aten.linear.default, (rows, *rest))
            back = graph.call_function(
                aten.reshape.default, (given, [*sizes, (observed_shape(node) or shape)[-1]])
            )
        node.replace_all_uses_with(back)
    remove_unused(graph_module)
