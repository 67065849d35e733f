"""Multiply-accumulates of operators, computed from the recorded shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import fx

from qgait_ptq.graph.operators import (
    ATTENTIONS,
    BILINEAR,
    EINSUMS,
    MATRIX_PRODUCTS,
    RECURRENT,
    RECURRENT_CELLS,
    TRANSPOSED_CONVOLUTIONS,
    WEIGHTED,
    is_operator,
)
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import WeightedLayer, argument, operands, source


def count_macs(node: fx.Node) -> int:
    """Return the multiply-accumulates of a node on the recorded example; 0 for operators without products.

    As usual, elementwise operators, normalisations and pooling are not counted.
    """
    if observed_shape(node) is None and not is_operator(node, RECURRENT | RECURRENT_CELLS):
        return 0
    count = next((count for operators, count in COUNTS if is_operator(node, operators)), None)
    return 0 if count is None else count(node)


def _count_layer(node: fx.Node) -> int:
    layer = WeightedLayer(node)
    output, weight = observed_shape(node), observed_shape(layer.weight)
    if output is None or weight is None:
        return 0
    return math.prod(output) * (math.prod(weight[1:]) if layer.is_convolution else weight[-1])


def _count_product(node: fx.Node) -> int:
    """Count k products for each value of ``[…, m, k] · […, k, n]``."""
    inner = (observed_shape(operands(node)[0]) or (0,))[-1]
    return math.prod(observed_shape(node) or (0,)) * inner


def _count_attention(node: fx.Node) -> int:
    """Count the scores and the weighted sums: ``[…, l, e] · [e, s]`` and ``[…, l, s] · [s, v]``."""
    query, key, value = (observed_shape(argument(node, name)) or (0,) for name in ("query", "key", "value"))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _count_recurrent(node: fx.Node) -> int:
    """Count each matrix of each layer and direction once for every frame of every sequence."""
    features = observed_shape(source(node)) or (0,)
    shapes = [observed_shape(parameter) or () for parameter in argument(node, "params")]
    return math.prod(features[:-1]) * sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def _count_cell(node: fx.Node) -> int:
    """Count both matrices of a recurrent cell once for each row of its input."""
    features = observed_shape(source(node)) or (0,)
    shapes = [observed_shape(argument(node, name)) or (0,) for name in ("w_ih", "w_hh")]
    return math.prod(features[:-1]) * sum(math.prod(shape) for shape in shapes)


def _count_transposed(node: fx.Node) -> int:
    """Count the kernels of all output channels of a group once for each value of the input."""
    weight = observed_shape(argument(node, "weight")) or (0, 0)
    return math.prod(observed_shape(source(node)) or (0,)) * math.prod(weight[1:])


def _count_bilinear(node: fx.Node) -> int:
    """Count ``[o, i] · x`` for each value of the other input."""
    weight = observed_shape(argument(node, "weight")) or (0, 0, 0)
    return math.prod(observed_shape(node) or (0,)) * math.prod(weight[1:])


def _count_einsum(node: fx.Node) -> int:
    """Count one product for each combination of all axes, for two operands."""
    inputs = str(argument(node, "equation")).replace(" ", "").split("->")[0].split(",")
    tensors = argument(node, "tensors")
    if len(inputs) != 2:
        return 0
    sizes: dict[str, int] = {}
    for letters, tensor in zip(inputs, tensors, strict=True):
        shape = observed_shape(tensor) or ()
        for axis, size in zip(_einsum_axes(letters, len(shape)), shape, strict=False):
            sizes[axis] = max(size, sizes.get(axis, 1))  # axes of dots can be broadcast
    return math.prod(sizes.values())


def _einsum_axes(letters: str, axes: int) -> list[str]:
    """Return a name for each axis of an operand; those of dots are counted from the last one."""
    left, dots, right = letters.partition("...")
    hidden = range(axes - len(left) - len(right), 0, -1) if dots else ()
    return [*left, *(f"{dots}{number}" for number in hidden), *right]


COUNTS: tuple[tuple[frozenset[object], Callable[[fx.Node], int]], ...] = (
    (WEIGHTED, _count_layer),
    (MATRIX_PRODUCTS, _count_product),
    (ATTENTIONS, _count_attention),
    (RECURRENT, _count_recurrent),
    (RECURRENT_CELLS, _count_cell),
    (TRANSPOSED_CONVOLUTIONS, _count_transposed),
    (BILINEAR, _count_bilinear),
    (EINSUMS, _count_einsum),
)
