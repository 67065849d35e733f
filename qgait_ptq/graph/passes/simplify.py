"""Exact rewrites of the float graph: fewer and simpler operators, the same function.

Per-part fully connected layers become grouped 1×1 convolutions, which every runtime quantizes per part and
channel; batch norm disappears into the layer before it, also through reshapes, as in a BNNeck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.attributes import add_parameter, origin, remove_unused, tensor_of
from qgait_ptq.graph.operators import (
    BATCH_NORMS,
    CONVOLUTIONS,
    IDENTITIES,
    MATRIX_PRODUCTS,
    RESHAPES,
    WEIGHTED,
    aten,
    is_operator,
)
from qgait_ptq.graph.passes.canonicalize import unify_spelling
from qgait_ptq.graph.shapes import observed_integer, observed_shape, record_shapes
from qgait_ptq.system.invariants import of_type, present

RELATIVE_TOLERANCE = 1e-5  # of the embedding's largest value


def simplify(graph_module: fx.GraphModule, example: Tensor, *others: Tensor) -> fx.GraphModule:
    """Rewrite a captured graph in place and check it against itself before.

    Args:
        graph_module: a captured network.
        example: silhouettes ``[n, s, h, w]``, n at least 2: what sizes are read from.
        others: of other batch sizes and frame counts, for the check: no rewrite may hold on the example only.

    Raises:
        CaptureError: the rewritten graph computes something else, by more than 1e-5 relative.
    """
    examples = (example, *others)
    with torch.inference_mode():
        expected = [graph_module(silhouettes) for silhouettes in examples]
    drop_identities(graph_module)
    unify_spelling(graph_module, examples)
    record_shapes(graph_module, example)
    part_linear_to_convolution(graph_module)
    record_shapes(graph_module, example)
    fold_batch_norms(graph_module)
    remove_unused(graph_module)
    add_missing_biases(graph_module)
    for silhouettes, wanted in zip(examples, expected, strict=True):
        with torch.inference_mode():
            difference = (graph_module(silhouettes) - wanted).abs().max()
        if not difference <= RELATIVE_TOLERANCE * wanted.abs().max():
            raise CaptureError(
                f"simplifying changed the network's output by {float(difference):.2e} (largest value "
                f"{float(wanted.abs().max()):.2e}) on silhouettes {list(silhouettes.shape)}; please report "
                "this network"
            )
    return graph_module


def drop_identities(graph_module: fx.GraphModule) -> None:
    """Remove dropout and detach."""
    for node in graph_module.graph.nodes:
        if is_operator(node, IDENTITIES):
            node.replace_all_uses_with(node.args[0])
    remove_unused(graph_module)


def part_linear_to_convolution(graph_module: fx.GraphModule) -> None:
    """Turn per-part products into a grouped 1×1 convolution with p groups.

    Two spellings: ``matmul([p, n, c], W[p, c, c'])`` and ``matmul([n, p, 1, c], W[1, p, c, c'])``.
    """
    for node in list(graph_module.graph.nodes):
        if not is_operator(node, MATRIX_PRODUCTS):
            continue
        weight, features = tensor_of(graph_module, node.args[1]), observed_shape(node.args[0])
        if weight is None or features is None:
            continue
        if weight.ndim == len(features) == 3 and features[0] == weight.shape[0]:
            _replace_part_linear(graph_module, node, weight, sample_axis=1)
        elif weight.ndim == len(features) == 4 and (weight.shape[0], *features[1:3]) == (
            1,
            weight.shape[1],
            1,
        ):
            _replace_part_linear(graph_module, node, weight[0], sample_axis=0)
    remove_unused(graph_module)


def _replace_part_linear(
    graph_module: fx.GraphModule, node: fx.Node, weight: Tensor, sample_axis: int
) -> None:
    parts, in_channels, out_channels = weight.shape
    graph, features, weight_node = graph_module.graph, node.args[0], node.args[1]
    weight_node = of_type(weight_node, fx.Node)
    kernel = weight.transpose(1, 2).reshape(parts * out_channels, in_channels, 1, 1)
    kernel_node = add_parameter(graph_module, node, origin(weight_node), kernel)
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


def fold_batch_norms(graph_module: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution or linear layer before it, where there is one."""
    for node in list(graph_module.graph.nodes):
        if not is_operator(node, BATCH_NORMS):
            continue
        layer, reshapes = _layer_before(node)
        if layer is None or tensor_of(graph_module, layer.args[1]) is None:
            continue
        mapping = _channel_mapping(layer, reshapes, node)
        if mapping is not None:
            _fold(graph_module, layer, node, mapping)
    remove_unused(graph_module)


def add_missing_biases(graph_module: fx.GraphModule) -> None:
    """Give every layer without a bias one of zeros: calibration moves biases, and adding them is free."""
    for node in list(graph_module.graph.nodes):
        weight = tensor_of(graph_module, node.args[1]) if is_operator(node, WEIGHTED) else None
        if weight is None or (len(node.args) > 2 and node.args[2] is not None):
            continue
        owner = origin(of_type(node.args[1], fx.Node)).rpartition(".")[0]
        path = f"{owner}.bias" if owner else "bias"
        bias = add_parameter(graph_module, node, path, weight.new_zeros(weight.shape[0]))
        node.args = (*node.args[:2], bias, *node.args[3:])
    graph_module.recompile()


def _layer_before(batch_norm: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
    """The weighted layer whose output reaches a batch norm through reshapes only, and nothing else."""
    reshapes: list[fx.Node] = []
    node = batch_norm.args[0]
    while is_operator(node, RESHAPES):
        node = of_type(node, fx.Node)
        if len(node.users) != 1:
            return None, []
        reshapes.insert(0, node)
        node = node.args[0]
    if isinstance(node, fx.Node) and is_operator(node, WEIGHTED) and len(node.users) == 1:
        return node, reshapes
    return None, []


def _channel_mapping(layer: fx.Node, reshapes: list[fx.Node], batch_norm: fx.Node) -> Tensor | None:
    """Which channel of the batch norm each output channel of the layer becomes, ``[c]``; None if it mixes.

    Sends channel numbers through the reshapes themselves, so any spelling of them is understood.
    """
    sizes = observed_shape(layer)
    if sizes is None:
        return None
    axis = _channel_axis(layer, len(sizes))
    numbers = torch.arange(sizes[axis])
    shape = [1] * len(sizes)
    shape[axis] = -1
    moved = numbers.reshape(shape).expand(sizes)
    for node in reshapes:
        moved = _apply_concretely(node, moved)
    by_channel = moved.transpose(0, 1).flatten(1)
    sources = by_channel[:, 0]
    if not bool((by_channel == sources[:, None]).all()) or len(sources.unique()) != len(numbers):
        return None
    mapping = torch.empty_like(numbers)
    mapping[sources] = torch.arange(len(sources))
    return mapping


def _channel_axis(layer: fx.Node, dimensions: int) -> int:
    return 1 if is_operator(layer, CONVOLUTIONS) else dimensions - 1


def _fold(graph_module: fx.GraphModule, layer: fx.Node, batch_norm: fx.Node, mapping: Tensor) -> None:
    weight_node, bias_node = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    weight_node = of_type(weight_node, fx.Node)
    weight = tensor_of(graph_module, weight_node)
    bias = tensor_of(graph_module, bias_node)
    weight = present(weight)
    gamma, beta, mean, variance = (tensor_of(graph_module, argument) for argument in batch_norm.args[1:5])
    if mean is None or variance is None:
        return
    # In float64: the quotient is then rounded once.
    factor = (variance.double() + float(batch_norm.args[7])).rsqrt()  # type: ignore[arg-type]
    factor = factor if gamma is None else factor * gamma.double()
    shift = (0 if beta is None else beta.double()) - mean.double() * factor
    factor, shift = factor[mapping.to(factor.device)], shift[mapping.to(factor.device)]
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))
    offset = shift if bias is None else bias.double() * factor + shift
    path = origin(weight_node)
    owner = path.rpartition(".")[0]
    layer.args = (
        layer.args[0],
        add_parameter(graph_module, layer, path, folded.to(weight.dtype)),
        add_parameter(graph_module, layer, f"{owner}.bias" if owner else "bias", offset.to(weight.dtype)),
        *layer.args[3:],
    )
    before = batch_norm.args[0]
    before = of_type(before, fx.Node)
    batch_norm.replace_all_uses_with(before)


def _apply_concretely(node: fx.Node, value: Tensor) -> Tensor:
    """Run a reshape on a small tensor; sizes that are computed get their values on the example."""
    arguments = fx.map_arg(node.args[1:], observed_integer)
    function: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    return function(value, *arguments, **node.kwargs)
