"""Multiply-accumulates of operators, computed from the recorded shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import fx

from qgait_ptq.graph.equations import axis_names, explicit_equation
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
    operator_name,
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


def has_uncounted_products(node: fx.Node) -> bool:
    """Return whether an operator multiplies and sums in a way that `count_macs` does not count.

    These are distances of all pairs, chains and powers of matrices, factorizations and Fourier transforms.
    """
    if node.op != "call_function" or observed_shape(node) is None:
        return False
    name = operator_name(node)
    return name in UNCOUNTED or (name.startswith(UNCOUNTED_FAMILIES) and name not in WITHOUT_PRODUCTS)


def _count_layer(node: fx.Node) -> int:
    layer = WeightedLayer(node)
    output, weight = observed_shape(node), observed_shape(layer.weight)
    if output is None or weight is None:
        return 0
    return math.prod(output) * (math.prod(weight[1:]) if layer.is_convolution else weight[-1])


def _count_product(node: fx.Node) -> int:
    """Count k products for each value of ``[…, m, k] · […, k, n]``."""
    inner = (observed_shape(operands(node)[0]) or (0,))[-1]
    return math.prod(observed_shape(node) or ()) * inner  # the product of two vectors has no axes


def _count_attention(node: fx.Node) -> int:
    """Count the scores and the weighted sums: ``[…, l, e] · [e, s]`` and ``[…, l, s] · [s, v]``."""
    query, key = (observed_shape(argument(node, name)) or (0, 0) for name in ("query", "key"))
    attended = observed_shape(node) or (0, 0)  # has the broadcast axes of all three
    return math.prod(attended[:-1]) * key[-2] * (query[-1] + attended[-1])


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
    """Count one product for each combination of axes of two tensors.

    An axis that only one tensor has, and not the result, is summed before.
    """
    inputs, result = explicit_equation(str(argument(node, "equation")))
    tensors = argument(node, "tensors")
    if len(inputs) != 2:
        return 0
    sizes: dict[str, int] = {}
    for position, (letters, tensor) in enumerate(zip(inputs, tensors, strict=True)):
        shape = observed_shape(tensor) or ()
        for axis, size in zip(axis_names(letters, len(shape)), shape, strict=False):
            if axis in inputs[1 - position] + result or axis.startswith("."):
                sizes[axis] = max(size, sizes.get(axis, 1))  # axes of dots can be broadcast
    return math.prod(sizes.values())


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

UNCOUNTED = frozenset({"cdist", "chain_matmul", "matrix_power", "matrix_exp", "cov", "corrcoef"})
UNCOUNTED_FAMILIES = ("linalg_", "fft_")
WITHOUT_PRODUCTS = frozenset({"linalg_norm", "linalg_vector_norm", "linalg_vecdot", "linalg_diagonal"})
