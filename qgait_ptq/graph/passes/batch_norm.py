"""Folding batch norms into the layers before them, also through reshapes, as in a BNNeck.

Batch norms that normalise by the statistics of their input stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.graph.attributes import add_parameter, origin, tensor_of
from qgait_ptq.graph.operators import RESHAPES, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_integer, observed_shape
from qgait_ptq.graph.views import BatchNorm, WeightedLayer, argument, source
from qgait_ptq.system.invariants import of_type, present


def drop_unread_statistics(graph_module: fx.GraphModule) -> None:
    """Remove stored statistics from batch norms that normalise by those of their input.

    torch's ONNX exporter would write a batch norm that reads them.
    """
    for node in graph_module.graph.nodes:
        batch_norm = BatchNorm.of(node)
        if batch_norm is not None and batch_norm.training:
            weight, bias, _, _ = batch_norm.parameters
            rest = [argument(node, name) for name in ("training", "momentum", "eps", "cudnn_enabled")]
            node.args, node.kwargs = (batch_norm.input, weight, bias, None, None, *rest), {}


def fold_batch_norms(graph_module: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution or linear layer before it, if there is one."""
    for node in list(graph_module.graph.nodes):
        batch_norm = BatchNorm.of(node)
        if batch_norm is None or not _is_fixed(graph_module, batch_norm):
            continue
        layer, reshapes = _layer_before(batch_norm)
        if layer is None or tensor_of(graph_module, layer.weight) is None:
            continue
        if layer.bias is not None and tensor_of(graph_module, layer.bias) is None:  # it is computed
            continue
        mapping = _channel_mapping(layer, reshapes)
        if mapping is not None:
            _fold(graph_module, layer, batch_norm, mapping)


def _is_fixed(graph_module: fx.GraphModule, batch_norm: BatchNorm) -> bool:
    """Return whether statistics and parameters are stored, and none is computed from the input."""
    given = [node for node in batch_norm.parameters if node is not None]
    _, _, mean, variance = batch_norm.parameters
    stored = all(tensor_of(graph_module, node) is not None for node in given)
    return stored and mean is not None and variance is not None and not batch_norm.training


def _layer_before(batch_norm: BatchNorm) -> tuple[WeightedLayer | None, list[fx.Node]]:
    """Return the weighted layer whose output reaches only a batch norm, and the reshapes between."""
    reshapes: list[fx.Node] = []
    node = batch_norm.input
    while is_operator(node, RESHAPES):
        if len(node.users) != 1:
            return None, []
        reshapes.insert(0, node)
        node = source(node)
    return (WeightedLayer.of(node), reshapes) if len(node.users) == 1 else (None, [])


def _channel_mapping(layer: WeightedLayer, reshapes: list[fx.Node]) -> Tensor | None:
    """Return the channel of the batch norm for each output channel, ``[c]``; None if there are several.

    Several output channels, such as those of all parts, can share a channel of the batch norm. Channel
    numbers are passed through the reshapes themselves, so every form of reshape is supported.
    """
    sizes = observed_shape(layer.node)
    if sizes is None:
        return None
    axis = 1 if layer.is_convolution else len(sizes) - 1
    numbers = torch.arange(sizes[axis])
    shape = [1] * len(sizes)
    shape[axis] = -1
    moved = numbers.reshape(shape).expand(sizes)
    for node in reshapes:
        moved = _apply_concretely(node, moved)
    mapping = torch.full_like(numbers, -1)
    for channel, own in enumerate(moved.transpose(0, 1).flatten(1)):
        sources = own.unique()
        if bool((mapping[sources] >= 0).any()):
            return None
        mapping[sources] = channel
    return mapping


def _fold(graph_module: fx.GraphModule, layer: WeightedLayer, batch_norm: BatchNorm, mapping: Tensor) -> None:
    weight = present(tensor_of(graph_module, layer.weight))
    bias = tensor_of(graph_module, layer.bias)
    gamma, beta, mean, variance = (tensor_of(graph_module, node) for node in batch_norm.parameters)
    mean, variance = present(mean), present(variance)
    # Computed in float64, so that the result is rounded once.
    factor = (variance.double() + batch_norm.eps).rsqrt()
    factor = factor if gamma is None else factor * gamma.double()
    shift = (0 if beta is None else beta.double()) - mean.double() * factor
    factor, shift = factor[mapping.to(factor.device)], shift[mapping.to(factor.device)]
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))
    offset = shift if bias is None else bias.double() * factor + shift
    path = origin(layer.weight)
    owner = path.rpartition(".")[0]
    layer.replace_parameters(
        add_parameter(graph_module, layer.node, path, folded.to(weight.dtype)),
        add_parameter(
            graph_module, layer.node, f"{owner}.bias" if owner else "bias", offset.to(weight.dtype)
        ),
    )
    batch_norm.node.replace_all_uses_with(batch_norm.input)


def _apply_concretely(node: fx.Node, value: Tensor) -> Tensor:
    """Run a reshape on a tensor; computed sizes get their recorded values."""
    arguments: Any = fx.map_arg(node.args[1:], observed_integer)
    function: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    return of_type(function(value, *arguments, **node.kwargs), Tensor)


DROP_UNREAD_STATISTICS = GraphPass("drop-unread-statistics", drop_unread_statistics)
FOLD_BATCH_NORMS = GraphPass("fold-batch-norms", fold_batch_norms)
