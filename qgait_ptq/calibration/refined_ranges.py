"""Ranges of activations, refined by the error that the regression of compensated rounding leaves.

Observers choose the range with the smallest squared error of a tensor. The layer that reads the tensor then
compensates what is linear in that error (`compensation.corrected_weight`). Silhouettes are binary, so whole
areas share few values in the first layers, and much of the error is linear there. A range with a larger error
of the tensor can then leave a smaller one behind the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qgait_ptq.calibration.compensation import InputMoments, corrected_weight
from qgait_ptq.calibration.input_columns import COLUMNS, InputColumns, draw, draw_items
from qgait_ptq.graph.attributes import attribute, shared_parameters
from qgait_ptq.graph.views import source
from qgait_ptq.placement.quantized_layers import (
    QuantizedLayer,
    activation_quantizers,
    quantized_layers,
    weight_of,
)
from qgait_ptq.quantizer.fake_quantize import FakeQuantize
from qgait_ptq.quantizer.grid import fake_quantize

# The range of the observer comes first, so that it wins a tie.
FACTORS = tuple(2 ** (tenths / 10) for tenths in (0, -2, -1, 1, 2, 3, 4))
FINE = 8  # bits at which the error of activations is negligible
# Behind the first layers, the observer's range is the best one, and wide layers cost most.
LARGEST = 640  # values in a row of a reader's weight
ROUNDING = 1e-6  # share of a layer's output energy below which errors are those of float32


@dataclass(frozen=True)
class RefinableInput:
    """A quantized tensor that only small layers read.

    Attributes:
        call: call of its quantizer.
        quantizer: the quantizer.
        readers: the layers.
    """

    call: fx.Node
    quantizer: FakeQuantize
    readers: tuple[QuantizedLayer, ...]


def refinable_inputs(graph_module: fx.GraphModule) -> list[RefinableInput]:
    """Return the tensors whose range can be refined, in graph order.

    They are no inputs of the network, and have fewer than 8 bits. Only quantized layers read them, whose
    weights have at most `LARGEST` values in a row. Rounding leaves shared weights alone, so that nothing
    compensates the error of their inputs.
    """
    shared = shared_parameters(graph_module)
    corrected = [layer for layer in quantized_layers(graph_module) if not layer.reads_any(shared)]
    layers = {layer.node: layer for layer in corrected}
    quantizers = activation_quantizers(graph_module, inputs=False)
    # A quantizer with several calls repeats its grid behind an operator, which reads the first call.
    first_calls: dict[str, fx.Node] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and node.target in quantizers:
            first_calls.setdefault(node.target, node)
    found = []
    for path, call in first_calls.items():
        readers = tuple(layers[node] for node in call.users if node in layers and source(node) is call)
        sizes = [math.prod(weight_of(graph_module, reader).shape[1:]) for reader in readers]
        small = bool(sizes) and max(sizes) <= LARGEST
        if small and len(readers) == len(call.users) and quantizers[path].grid.bits < FINE:
            found.append(RefinableInput(call, quantizers[path], readers))
    return found


def refined_factor(
    reference: fx.GraphModule,
    tensor: RefinableInput,
    values: Iterable[tuple[Tensor, Tensor]],
    batches: int,
    seed: int,
    damping: float,
    corrects_bias: bool,
) -> float:
    """Return the factor of the scale that leaves the smallest squared error behind the readers.

    It is one of `FACTORS`, an arbitrary one if values are not finite.

    Args:
        reference: the graph with its quantizers switched off.
        tensor: the quantized tensor.
        values: its values in the float network, and in the quantized network before its quantizer, batch by
            batch.
        batches: number of batches.
        seed: random seed for the drawn columns.
        damping: see `compensation.damped`.
        corrects_bias: whether biases absorb mean errors.
    """
    drawn = [_Reader(reader, attribute(reference, reader.weight_path), seed) for reader in tensor.readers]
    for original, before in values:
        for reader in drawn:
            reader.see(tensor.quantizer, original, before, max(1, COLUMNS // batches))
    errors = torch.stack([reader.errors(damping, corrects_bias) for reader in drawn]).sum(0)
    return FACTORS[int(errors.argmin())]


class _Reader:
    """A layer that reads the tensor, and the moments of its input with each factor."""

    def __init__(self, layer: QuantizedLayer, weight: Tensor, seed: int) -> None:
        self.layer, self.weight = layer, weight
        self.generator = torch.Generator().manual_seed(seed)
        self.moments: list[InputMoments] = []  # with the factors; the last ones are of the float values alone

    def see(self, quantizer: FakeQuantize, original: Tensor, before: Tensor, share: int) -> None:
        """Add columns of a batch."""
        node, shape = self.layer.node, self.weight.shape
        items = draw_items(node, before, share, self.generator)
        view = InputColumns.of(node, shape, original[items])
        indices = draw(view.count, share, self.generator).to(before.device)
        float_columns = view.take(indices)
        grid, zero_point = quantizer.grid, quantizer.zero_point
        parts = []
        for factor in FACTORS:
            values = fake_quantize(before[items], quantizer.scale * factor, zero_point, grid, None)
            parts.append(InputMoments.of(InputColumns.of(node, shape, values).take(indices), float_columns))
        parts.append(InputMoments.of(float_columns, float_columns))
        merged = zip(self.moments, parts, strict=True)
        self.moments = [old.merge(new) for old, new in merged] if self.moments else parts

    def errors(self, damping: float, corrects_bias: bool) -> Tensor:
        """Return the squared error of the layer's output for each factor, before its weight is rounded."""
        *candidates, of_float = self.moments
        # If the bias absorbs the mean error, only the variation counts.
        absorbed = corrects_bias and self.layer.bias_parameter is not None
        size = of_float.spread.shape[-1]
        weight = self.weight.detach().double().reshape(len(of_float.spread), -1, size)
        energy = ((weight @ (of_float.spread if absorbed else of_float.about_zero()[0])) * weight).sum()
        errors = []
        for moments in candidates:
            second, cross = (moments.spread, moments.cross_spread) if absorbed else moments.about_zero()
            target = corrected_weight(weight, second, cross, moments.count, damping)
            errors.append(energy + ((target @ second - 2 * weight @ cross) * target).sum())
        return torch.stack(errors).clamp_min(ROUNDING * energy)
