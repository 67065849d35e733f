"""Layer by layer: weights rounded so that each layer makes up for the errors before it, and biases corrected.

Float and quantized network are walked side by side. At each layer the inputs that it gets with everything
before it quantized are compared with those it should have got; its weight is rounded for them
(`compensation`), and its bias takes up the mean error that is left. Needs no labels and no gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from qgait_ptq.calibration.compensation import (
    InputMoments,
    corrected_weight,
    refitted_scale,
    round_columns,
)
from qgait_ptq.errors import CalibrationError
from qgait_ptq.graph.attributes import layer_name, set_parameter, shared_parameters, tensor_of
from qgait_ptq.graph.operators import CONVOLUTIONS, is_operator
from qgait_ptq.graph.shapes import observed_integer
from qgait_ptq.graph.stepping import DEFAULT_MEMORY, Stepper
from qgait_ptq.graph.views import WeightedLayer
from qgait_ptq.placement.quantized_layers import QuantizedLayer, quantized_layers, weight_of
from qgait_ptq.quantizer.grid import quantize
from qgait_ptq.quantizer.pairs import neighbours, widened_scale
from qgait_ptq.system.invariants import present

ITEM_SHARE = 8  # columns are drawn from items (frames or sequences) that have so many times more
COLUMNS = 24_576  # input columns of a layer that moments are estimated from, per network


class Rounding(StrEnum):
    """How weights are rounded."""

    NEAREST = "nearest"
    GPTQ = "gptq"
    QRONOS = "qronos"
    KEPT = "kept"  # the weights are rounded already


@dataclass(frozen=True)
class CorrectionSettings:
    """What is done at each layer.

    Attributes:
        rounding: of weights.
        bias: whether biases take up mean errors.
        damping: see `compensation.damped`.
        seed: of the drawn columns.
        memory: bytes of activations held; more go to disk.
    """

    rounding: Rounding = Rounding.QRONOS
    bias: bool = True
    damping: float = 0.01
    seed: int = 0
    memory: int = DEFAULT_MEMORY


def correct_layers(
    reference: fx.GraphModule,
    quantized: fx.GraphModule,
    batches: Sequence[Tensor],
    settings: CorrectionSettings,
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """Round weights and correct biases of a calibrated graph in place, in graph order.

    Afterwards each weight lies on its grid: rounding it to nearest gives the chosen integers.

    Args:
        reference: the same graph with its quantizers switched off.
        quantized: ranges are set.
        batches: silhouettes ``[n, s, h, w]`` in [0, 1].
        settings: what is done.
        advance: called after each layer.

    Returns:
        Layers that were left as they are because other layers share their weight.

    Raises:
        CalibrationError: the inputs of a layer are not finite.
    """
    steppers = [Stepper(graph, batches, settings.memory) for graph in (reference, quantized)]
    shared = shared_parameters(quantized)
    left_alone = []
    for layer, original in zip(quantized_layers(quantized), quantized_layers(reference), strict=True):
        for stepper in steppers:
            stepper.advance(layer.weight_call.name)
        if layer.weight_path in shared or (layer.bias_path or "") in shared:
            left_alone.append(layer_name(layer.node))
        else:
            weight, bias = weight_of(reference, original), tensor_of(reference, original.bias_parameter)
            moments = _input_moments(layer.node, weight.shape, steppers[0], steppers[1], settings)
            _correct(quantized, layer, weight, bias, moments, settings)
        advance()
    return left_alone


def correct_alone(
    reference: fx.GraphModule,
    candidates: Sequence[fx.GraphModule],
    batches: Sequence[Tensor],
    settings: CorrectionSettings,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Round each layer's weight as if no other layer were quantized, in place.

    Args:
        reference: the graph with its quantizers switched off.
        candidates: the same graph at several widths; ranges are set.
        batches: silhouettes ``[n, s, h, w]`` in [0, 1].
        settings: what is done.
        advance: called after each layer.

    Raises:
        CalibrationError: the inputs of a layer are not finite.
    """
    stepper = Stepper(reference, batches, settings.memory)
    shared = shared_parameters(reference)
    for original, *others in zip(*map(quantized_layers, (reference, *candidates)), strict=True):
        stepper.advance(original.weight_call.name)
        if original.weight_path not in shared and (original.bias_path or "") not in shared:
            weight, bias = weight_of(reference, original), tensor_of(reference, original.bias_parameter)
            moments = _input_moments(original.node, weight.shape, stepper, stepper, settings)
            for candidate, layer in zip(candidates, others, strict=True):
                _correct(candidate, layer, weight, bias, moments, settings)
        advance()


def _correct(
    graph_module: fx.GraphModule,
    layer: QuantizedLayer,
    float_weight: Tensor,
    float_bias: Tensor | None,
    moments: InputMoments,
    settings: CorrectionSettings,
) -> None:
    if not (torch.isfinite(moments.second).all() and torch.isfinite(moments.cross).all()):
        raise CalibrationError(f"layer {layer_name(layer.node)}: its inputs hold NaN or infinite values")
    quantizer, weight = layer.weight_quantizer, weight_of(graph_module, layer)
    shape = (moments.second.shape[0], -1, moments.second.shape[-1])
    wanted, present = float_weight.detach().reshape(shape), weight.detach().reshape(shape)
    scale = quantizer.scale.expand(weight.shape[0]).reshape(shape[0], -1)
    corrects_bias = settings.bias and float_bias is not None
    # Where the bias takes up the mean error, only what varies is left to the weight.
    second, cross = moments.centred() if corrects_bias else (moments.second, moments.cross)
    rounded = wanted if settings.rounding is not Rounding.KEPT else present
    integers, scale = _round(rounded, scale, layer, weight.shape, second, cross, moments.count, settings)
    if settings.rounding is not Rounding.NEAREST:
        scale = refitted_scale(integers, scale, wanted, second, cross)
        quantizer.scale = scale.flatten().clone()
        on_grid = integers * scale.double()[..., None]
        set_parameter(graph_module, layer.weight_parameter, on_grid.reshape(weight.shape).to(weight.dtype))
    if corrects_bias and float_bias is not None:
        due = (wanted.double() @ moments.mean_float[..., None])[..., 0]
        given = ((integers * scale.double()[..., None]) @ moments.mean_quantized[..., None])[..., 0]
        moved = float_bias + (due - given).flatten().to(float_bias.dtype)
        set_parameter(graph_module, layer.bias_parameter, moved)


def _round(
    weight: Tensor,
    scale: Tensor,
    layer: QuantizedLayer,
    shape: torch.Size,
    second: Tensor,
    cross: Tensor,
    count: int,
    settings: CorrectionSettings,
) -> tuple[Tensor, Tensor]:
    """Integers of a weight ``[g, o, k]``, which the layer has as ``[o, i, *kernel]``, and their scale."""
    grid = layer.weight_quantizer.grid
    if settings.rounding in (Rounding.NEAREST, Rounding.KEPT):
        zero_point = torch.zeros((), device=weight.device)
        steps = quantize(weight.double().reshape(shape), scale.double().flatten(), zero_point, grid, 0)
        return steps.reshape(weight.shape), scale
    target = weight.double()
    if settings.rounding is Rounding.QRONOS:
        target = corrected_weight(weight, second, cross, count, settings.damping)
    partners = None
    if grid.pair_limit is not None:
        channels, *kernel = shape[1:]
        partners = neighbours(channels, math.prod(kernel)).to(weight.device)
        # The weight for the inputs as they are has other pairs than the float weight.
        scale = widened_scale(target.reshape(shape), scale.flatten(), grid.pair_limit).reshape(scale.shape)
    return round_columns(target, scale, grid, second, count, settings.damping, partners), scale


def _input_moments(
    layer: fx.Node,
    weight_shape: torch.Size,
    reference: Stepper,
    quantized: Stepper,
    settings: CorrectionSettings,
) -> InputMoments:
    generator = torch.Generator().manual_seed(settings.seed)
    share = max(1, COLUMNS // len(quantized.batches))
    total: InputMoments | None = None
    for wanted, given in zip(reference.input_of(layer.name), quantized.input_of(layer.name), strict=True):
        items = _draw(len(given), math.ceil(share * ITEM_SHARE / _positions(layer, given)), generator)
        columns = _columns(layer, weight_shape, given[items])
        chosen = _draw(columns.shape[-1], share, generator)
        part = InputMoments.of(
            columns[..., chosen], _columns(layer, weight_shape, wanted[items])[..., chosen]
        )
        total = part if total is None else total.merge(part)
    return present(total)


def _draw(available: int, wanted: int, generator: torch.Generator) -> Tensor | slice:
    """Some indices, or all."""
    return torch.randperm(available, generator=generator)[:wanted] if wanted < available else slice(None)


def _positions(layer: fx.Node, tensor: Tensor) -> int:
    """How many columns an item of dim 0 has, roughly: its spatial size."""
    return max(1, tensor[0, 0].numel()) if is_operator(layer, CONVOLUTIONS) else 1


def _columns(layer: fx.Node, weight_shape: torch.Size, tensor: Tensor) -> Tensor:
    """What a layer multiplies its weight with: ``[groups, k, n]``.

    Spatial positions of all frames and sequences are columns alike.
    """
    if not is_operator(layer, CONVOLUTIONS):
        return tensor.flatten(0, -2).T[None]
    dimensions = tensor.ndim - 2
    view = WeightedLayer(layer)
    stride, padding, dilation = view.stride, view.padding, view.dilation
    kernel = weight_shape[2:]
    groups = observed_integer(view.groups)
    padded = F.pad(tensor, [amount for size in reversed(padding) for amount in (size, size)])
    for axis in range(dimensions):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        padded = padded.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
    # [n, c, positions…, kernel…] → [groups, c/groups · kernel…, n · positions…]
    spatial = list(range(2, 2 + dimensions))
    windows = list(range(2 + dimensions, 2 + 2 * dimensions))
    moved = padded.permute(1, *windows, 0, *spatial)
    return moved.reshape(groups, moved.shape[0] // groups * torch.Size(kernel).numel(), -1)
