"""Compensated rounding and bias correction, layer by layer.

The float and the quantized network run side by side. At each layer, the inputs in the quantized network are
compared with those in the float network. The weight is rounded for them (`compensation`), and the bias
absorbs the remaining mean error. This needs no labels and no gradients.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, fx

from qgait_ptq.calibration.compensation import (
    InputMoments,
    corrected_weight,
    refitted_scale,
    round_columns,
)
from qgait_ptq.calibration.input_columns import input_moments, number_of_columns
from qgait_ptq.calibration.refined_ranges import RefinableInput, refinable_inputs, refined_factor
from qgait_ptq.errors import CalibrationError
from qgait_ptq.graph.attributes import set_parameter, shared_parameters, tensor_of
from qgait_ptq.graph.stepping import DEFAULT_MEMORY, Stepper
from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.placement.quantized_layers import QuantizedLayer, quantized_layers, weight_of
from qgait_ptq.quantizer.grid import quantize, smallest_scale
from qgait_ptq.quantizer.pairs import neighbours, widened_scale


class Rounding(StrEnum):
    """Method of rounding weights."""

    NEAREST = "nearest"
    GPTQ = "gptq"
    QRONOS = "qronos"
    KEPT = "kept"  # the weights are rounded already
    REFITTED = "refitted"  # as Qronos, but near the current weights instead of the float ones


@dataclass(frozen=True)
class CorrectionSettings:
    """Settings of rounding and bias correction.

    Attributes:
        rounding: method of rounding weights.
        bias: whether biases absorb mean errors.
        damping: see `compensation.damped`.
        refined_ranges: whether ranges of small layers' inputs are refined, see `refined_ranges`.
        seed: random seed for the drawn columns.
        memory: bytes of activations to hold; the rest goes to disk.
    """

    rounding: Rounding = Rounding.QRONOS
    bias: bool = True
    damping: float = 0.01
    refined_ranges: bool = False
    seed: int = 0
    memory: int = DEFAULT_MEMORY


@dataclass(frozen=True)
class Corrected:
    """Result of the corrections.

    Attributes:
        left_alone: names of layers that stay unchanged because other layers share their weight.
        factors: factors of refined ranges other than 1, by the name of the first layer that reads the tensor.
    """

    left_alone: list[str]
    factors: dict[str, float]


def correct_layers(
    reference: fx.GraphModule,
    quantized: fx.GraphModule,
    batches: Sequence[Tensor],
    settings: CorrectionSettings,
    advance: Callable[[], None] = lambda: None,
) -> Corrected:
    """Round weights and correct biases of a calibrated graph in place, in graph order.

    Afterwards each weight lies on its grid: rounding to nearest returns the chosen integers.

    Args:
        reference: the same graph with its quantizers switched off.
        quantized: graph whose ranges are set.
        batches: silhouettes ``[n, s, h, w]`` in [0, 1].
        settings: settings of rounding and bias correction.
        advance: called after each layer.

    Raises:
        CalibrationError: the inputs of a layer are not finite.
    """
    steppers = [Stepper(graph, batches, settings.memory) for graph in (reference, quantized)]
    shared = shared_parameters(quantized)
    refinable = deque(refinable_inputs(quantized) if settings.refined_ranges else ())
    left_alone, factors = [], {}
    for layer, original in zip(quantized_layers(quantized), quantized_layers(reference), strict=True):
        while refinable and refinable[0].call < layer.node:
            tensor = refinable.popleft()
            factor = _refine(reference, tensor, steppers, settings)
            if factor != 1:
                factors[layer_name(tensor.readers[0].node)] = factor
        for stepper in steppers:
            stepper.advance(layer.weight_call.name)
        if layer.reads_any(shared):
            left_alone.append(layer_name(layer.node))
        else:
            weight, bias = weight_of(reference, original), tensor_of(reference, original.bias_parameter)
            moments = _input_moments(layer.node, weight.shape, steppers[0], steppers[1], settings)
            correct_layer(quantized, layer, weight, bias, moments, settings)
        advance()
    return Corrected(left_alone, factors)


def _refine(
    reference: fx.GraphModule,
    tensor: RefinableInput,
    steppers: Sequence[Stepper],
    settings: CorrectionSettings,
) -> float:
    """Set the best scale of a tensor in the quantized graph, and return its factor."""
    for stepper in steppers:
        stepper.advance(tensor.call.name)
    values = zip(*(stepper.input_of(tensor.call.name) for stepper in steppers), strict=True)
    factor = refined_factor(
        reference,
        tensor,
        values,
        len(steppers[0].batches),
        settings.seed,
        settings.damping,
        settings.bias,
    )
    tensor.quantizer.set_scale(tensor.quantizer.scale * factor)
    return factor


def correct_alone(
    reference: fx.GraphModule,
    candidates: Sequence[fx.GraphModule],
    batches: Sequence[Tensor],
    settings: CorrectionSettings,
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """Round each layer's weight as if no other layer were quantized, in place.

    Args:
        reference: the graph with its quantizers switched off.
        candidates: the same graph at several widths, with ranges set.
        batches: silhouettes ``[n, s, h, w]`` in [0, 1].
        settings: settings of rounding and bias correction.
        advance: called after each layer.

    Returns:
        Names of layers that stay unchanged because other layers share their weight.

    Raises:
        CalibrationError: the inputs of a layer are not finite.
    """
    stepper = Stepper(reference, batches, settings.memory)
    shared = shared_parameters(reference)
    left_alone = []
    for original, *others in zip(*map(quantized_layers, (reference, *candidates)), strict=True):
        stepper.advance(original.weight_call.name)
        if original.reads_any(shared):
            left_alone.append(layer_name(original.node))
        else:
            weight, bias = weight_of(reference, original), tensor_of(reference, original.bias_parameter)
            moments = _input_moments(original.node, weight.shape, stepper, stepper, settings)
            for candidate, layer in zip(candidates, others, strict=True):
                correct_layer(candidate, layer, weight, bias, moments, settings)
        advance()
    return left_alone


def correct_layer(
    graph_module: fx.GraphModule,
    layer: QuantizedLayer,
    float_weight: Tensor,
    float_bias: Tensor | None,
    moments: InputMoments,
    settings: CorrectionSettings,
) -> None:
    """Round the weight of a layer and correct its bias, in place.

    Args:
        graph_module: graph whose ranges are set.
        layer: layer of the graph.
        float_weight: its weight in the float network.
        float_bias: its bias there; None without one.
        moments: moments of its inputs in both networks.
        settings: settings of rounding and bias correction.

    Raises:
        CalibrationError: the inputs of the layer are not finite.
    """
    if not (torch.isfinite(moments.spread).all() and torch.isfinite(moments.cross_spread).all()):
        raise CalibrationError(
            f"layer {layer_name(layer.node)}: its inputs contain NaN or infinite values in calibration"
        )
    quantizer, weight = layer.weight_quantizer, weight_of(graph_module, layer)
    shape = (moments.spread.shape[0], -1, moments.spread.shape[-1])
    original, current = float_weight.detach().reshape(shape), weight.detach().reshape(shape)
    scale = quantizer.scale.expand(weight.shape[0]).reshape(shape[0], -1)
    corrects_bias = settings.bias and float_bias is not None
    # If the bias absorbs the mean error, the weight only has to match the variation.
    second, cross = (moments.spread, moments.cross_spread) if corrects_bias else moments.about_zero()
    target = _target(original, current, second, cross, moments.count, settings)
    if settings.rounding is Rounding.REFITTED:  # it can be larger than the weight that set the scale
        largest = target.abs().amax(2) / layer.weight_quantizer.grid.quant_max
        scale = torch.maximum(scale, largest.to(scale.dtype))
    integers, scale = _round(target, scale, layer, weight.shape, second, moments.count, settings)
    if settings.rounding is not Rounding.NEAREST:
        near = current if settings.rounding is Rounding.REFITTED else original
        scale = refitted_scale(
            integers, scale, original, second, cross, moments.count, settings.damping, near
        )
        if float_bias is not None and layer.bias_quantizer is not None:
            room = smallest_scale(float_bias, layer.input_quantizer(graph_module).scale)
            scale = torch.maximum(scale, room.reshape(scale.shape).to(scale.dtype))
        quantizer.set_scale(scale.flatten().clone())
        on_grid = integers * scale.double()[..., None]
        set_parameter(graph_module, layer.weight_parameter, on_grid.reshape(weight.shape).to(weight.dtype))
    if corrects_bias and float_bias is not None:
        expected = (original.double() @ moments.mean_float[..., None])[..., 0]
        actual = ((integers * scale.double()[..., None]) @ moments.mean_quantized[..., None])[..., 0]
        moved = float_bias + (expected - actual).flatten().to(float_bias.dtype)
        set_parameter(graph_module, layer.bias_parameter, moved)


def _target(
    original: Tensor, current: Tensor, second: Tensor, cross: Tensor, count: int, settings: CorrectionSettings
) -> Tensor:
    """Return the weight ``[g, o, k]`` to round, from the float weight and the current one."""
    if settings.rounding is Rounding.KEPT:
        return current
    if settings.rounding is Rounding.QRONOS:
        return corrected_weight(original, second, cross, count, settings.damping)
    if settings.rounding is Rounding.REFITTED:
        return corrected_weight(original, second, cross, count, settings.damping, current)
    return original


def _round(
    target: Tensor,
    scale: Tensor,
    layer: QuantizedLayer,
    shape: torch.Size,
    second: Tensor,
    count: int,
    settings: CorrectionSettings,
) -> tuple[Tensor, Tensor]:
    """Return integers and scale of a weight ``[g, o, k]``; `shape` is ``[o, i, *kernel]``."""
    grid, target = layer.weight_quantizer.grid, target.double()
    if settings.rounding in (Rounding.NEAREST, Rounding.KEPT):
        zero_point = torch.zeros((), device=target.device)
        steps = quantize(target.reshape(shape), scale.double().flatten(), zero_point, grid, 0)
        return steps.reshape(target.shape), scale
    partners = None
    if grid.pair_limit is not None:
        channels, *kernel = shape[1:]
        partners = neighbours(channels, math.prod(kernel)).to(target.device)
        # The corrected weight can have larger pairs than the float weight.
        scale = widened_scale(target.reshape(shape), scale.flatten(), grid.pair_limit).reshape(scale.shape)
    return round_columns(target, scale, grid, second, count, settings.damping, partners), scale


def _input_moments(
    layer: fx.Node,
    weight_shape: torch.Size,
    reference: Stepper,
    quantized: Stepper,
    settings: CorrectionSettings,
) -> InputMoments:
    inputs = zip(reference.input_of(layer.name), quantized.input_of(layer.name), strict=True)
    batches = quantized.batches
    columns = number_of_columns(weight_shape, sum(map(len, batches)))
    return input_moments(layer, weight_shape, inputs, len(batches), settings.seed, columns)
