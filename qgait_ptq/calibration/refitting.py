"""Refit of the layers that give the embedding, by ridge regression on many sequences.

A fully connected layer behind the maximum over frames sees one column for each sequence. The few sequences
of the calibration set determine its weight badly, and gradients reach the least-squares solution slowly. A
thousand sequences without labels determine it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from qgait_ptq.calibration.correction import CorrectionSettings, Rounding, correct_layer
from qgait_ptq.calibration.input_columns import input_moments
from qgait_ptq.calibration.last_layers import LastPart, ManyInputs
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.placement.quantized_layers import weight_of


def refit_last_layers(
    part: LastPart, inputs: ManyInputs, seed: int = 0, advance: Callable[[], None] = lambda: None
) -> list[str]:
    """Refit weights and biases of the last quantized layers in place, near their current values.

    Args:
        part: the last layers.
        inputs: their inputs, batch by batch.
        seed: random seed for the drawn columns.
        advance: called after each batch of the first layer.

    Returns:
        Names of the nodes of the refitted layers.

    Raises:
        CalibrationError: the inputs of a layer are not finite.
    """
    settings = CorrectionSettings(Rounding.REFITTED, seed=seed)
    for number, layer in enumerate(part.layers):
        name, original = layer.node.name, part.originals[layer.node.name]
        weight = weight_of(part.reference, original)
        bias = tensor_of(part.reference, original.bias_parameter)
        pairs = _pairs(inputs, name, part.source_of(layer), advance if number == 0 else lambda: None)
        moments = input_moments(layer.node, weight.shape, pairs, len(inputs), settings.seed)
        correct_layer(part.quantized, layer, weight, bias, moments, settings)
    return [layer.node.name for layer in part.layers]


def _pairs(
    inputs: ManyInputs, layer: str, read: str, advance: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the input of a layer in the float and in the quantized network for each batch."""
    for one in inputs:
        yield one.reference[layer], one.quantized[read]
        advance()
