"""Refit of the layers that give the embedding, by ridge regression on many sequences.

A fully connected layer behind the maximum over frames sees one column for each sequence. The few sequences
of the calibration set determine its weight badly, and gradients reach the least-squares solution slowly. A
thousand sequences without labels determine it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, fx

from qgait_ptq.calibration.correction import CorrectionSettings, Rounding, correct_layer, input_moments
from qgait_ptq.graph.attributes import shared_parameters, tensor_of
from qgait_ptq.graph.recorder import run_recorded
from qgait_ptq.graph.views import source
from qgait_ptq.placement.quantized_layers import QuantizedLayer, quantized_layers, weight_of


def refit_last_layers(
    quantized: fx.GraphModule,
    reference: fx.GraphModule,
    batches: Sequence[Tensor],
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """Refit weights and biases of the last quantized layers in place, near their current values.

    Args:
        quantized: calibrated graph.
        reference: the same graph with its quantizers switched off.
        batches: network inputs ``[n, s, h, w]``.
        advance: called after each batch of the first layer.

    Returns:
        Names of the nodes of the refitted layers.

    Raises:
        CalibrationError: the inputs of a layer are not finite.
    """
    shared = shared_parameters(quantized)
    layers = [
        layer
        for layer in last_layers(quantized)
        if layer.weight_path not in shared and (layer.bias_path or "") not in shared
    ]
    originals = {layer.node.name: layer for layer in quantized_layers(reference)}
    settings = CorrectionSettings(Rounding.REFITTED)
    for number, layer in enumerate(layers):
        original = originals[layer.node.name]
        tell = advance if number == 0 else lambda: None
        weight, bias = weight_of(reference, original), tensor_of(reference, original.bias_parameter)
        inputs = _inputs_of(layer, original, quantized, reference, batches, tell)
        moments = input_moments(layer.node, weight.shape, inputs, len(batches), settings.seed)
        correct_layer(quantized, layer, weight, bias, moments, settings)
    return [layer.node.name for layer in layers]


def last_layers(graph_module: fx.GraphModule) -> list[QuantizedLayer]:
    """Return the quantized layers behind which there is no other one."""
    layers = {layer.node: layer for layer in quantized_layers(graph_module)}
    before: set[fx.Node] = set()  # nodes that lead to a quantized layer
    for node in reversed(graph_module.graph.nodes):
        if any(user in before or user in layers for user in node.users):
            before.add(node)
    return [layer for node, layer in layers.items() if node not in before]


def _inputs_of(
    layer: QuantizedLayer,
    original: QuantizedLayer,
    quantized: fx.GraphModule,
    reference: fx.GraphModule,
    batches: Sequence[Tensor],
    advance: Callable[[], None],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the input of a layer in the float and in the quantized network for each batch."""
    for batch in batches:
        yield _value(reference, source(original.node), batch), _value(quantized, source(layer.node), batch)
        advance()


def _value(graph_module: fx.GraphModule, wanted: fx.Node, batch: Tensor) -> Tensor:
    """Return the value of a node for a batch."""
    found: list[Tensor] = []

    def visit(node: fx.Node, value: Tensor) -> None:
        if node is wanted:
            found.append(value)

    with torch.no_grad():
        run_recorded(graph_module, batch, visit)
    return found[0]
