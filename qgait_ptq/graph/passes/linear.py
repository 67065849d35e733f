"""Rewriting products as linear layers on matrices, and per-part layers as grouped convolutions.

Runtimes have integer kernels for these forms. A grouped convolution has a scale for each part and channel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from qgait_ptq.graph.attributes import add_parameter, origin, tensor_of
from qgait_ptq.graph.operators import MATRIX_PRODUCTS, aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import WeightedLayer, operands
from qgait_ptq.system.invariants import of_type


def products_to_linear(graph_module: fx.GraphModule) -> None:
    """Turn ``matmul(x, W)`` with a stored matrix into a linear layer."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, MATRIX_PRODUCTS):
            continue
        features, matrix = operands(node)
        weight, shape = tensor_of(graph_module, matrix), observed_shape(features)
        if weight is None or weight.ndim != 2 or shape is None or len(shape) < 2:
            continue
        parameter = add_parameter(graph_module, node, origin(matrix), weight.T)
        with graph.inserting_before(node):
            linear = graph.call_function(aten.linear.default, (features, parameter, None))
        node.replace_all_uses_with(linear)


def linear_to_matrices(graph_module: fx.GraphModule) -> None:
    """Let linear layers on tokens ``[n, t, c]`` read matrices ``[n·t, c]``, which have integer kernels."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        layer = WeightedLayer.of(node)
        if layer is None or layer.is_convolution or tensor_of(graph_module, layer.weight) is None:
            continue
        shape = observed_shape(layer.input)
        if shape is None or len(shape) < 3:
            continue
        with graph.inserting_before(node):
            sizes = [
                graph.call_function(aten.sym_size.int, (layer.input, axis)) for axis in range(len(shape) - 1)
            ]
            rows = graph.call_function(aten.reshape.default, (layer.input, [-1, shape[-1]]))
            product = graph.call_function(aten.linear.default, (rows, layer.weight, layer.bias))
            channels = (observed_shape(node) or shape)[-1]
            back = graph.call_function(aten.reshape.default, (product, [*sizes, channels]))
        node.replace_all_uses_with(back)


def part_linear_to_convolution(graph_module: fx.GraphModule) -> None:
    """Turn per-part products into a grouped 1×1 convolution with p groups.

    Two forms: ``matmul([p, n, c], W[p, c, c'])``, and ``matmul([n, p, 1, c], W)`` with ``W[1, p, c, c']`` or
    ``W[p, c, c']``.
    """
    for node in list(graph_module.graph.nodes):
        if not is_operator(node, MATRIX_PRODUCTS):
            continue
        features, matrix = operands(node)
        weight, shape = tensor_of(graph_module, matrix), observed_shape(features)
        if weight is None or shape is None:
            continue
        if weight.ndim == len(shape) == 3 and shape[0] == weight.shape[0]:
            _replace_part_linear(graph_module, node, weight, sample_axis=1)
        elif len(shape) == 4 and weight.ndim == 3 and shape[1:3] == (weight.shape[0], 1):
            _replace_part_linear(graph_module, node, weight, sample_axis=0)
        elif weight.ndim == len(shape) == 4 and (weight.shape[0], *shape[1:3]) == (1, weight.shape[1], 1):
            _replace_part_linear(graph_module, node, weight[0], sample_axis=0)


def _replace_part_linear(
    graph_module: fx.GraphModule, node: fx.Node, weight: Tensor, sample_axis: int
) -> None:
    parts, in_channels, out_channels = weight.shape
    graph = graph_module.graph
    features, matrix = operands(node)
    kernel = weight.transpose(1, 2).reshape(parts * out_channels, in_channels, 1, 1)
    kernel_node = add_parameter(graph_module, node, origin(of_type(matrix, fx.Node)), kernel)
    parts_first = sample_axis == 1
    with graph.inserting_before(node):
        count = graph.call_function(aten.sym_size.int, (features, sample_axis))
        by_sample = (
            graph.call_function(aten.permute.default, (features, [1, 0, 2])) if parts_first else features
        )
        as_image = graph.call_function(aten.reshape.default, (by_sample, [count, parts * in_channels, 1, 1]))
        convolution = graph.call_function(
            aten.conv2d.default, (as_image, kernel_node, None, [1, 1], [0, 0], [1, 1], parts)
        )
        sizes: list[Any] = [count, parts, out_channels] if parts_first else [count, parts, 1, out_channels]
        result = graph.call_function(aten.reshape.default, (convolution, sizes))
        if parts_first:
            result = graph.call_function(aten.permute.default, (result, [1, 0, 2]))
    node.replace_all_uses_with(result)


PRODUCTS_TO_LINEAR = GraphPass("products-to-linear", products_to_linear)
LINEAR_TO_MATRICES = GraphPass("linear-to-matrices", linear_to_matrices)
PART_LINEAR_TO_CONVOLUTION = GraphPass("part-linear-to-convolution", part_linear_to_convolution)
