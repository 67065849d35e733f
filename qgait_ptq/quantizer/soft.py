"""The soft quantizer: hard rounding with a gradient that depends on the position inside a rounding step.

The forward pass is bit-identical with `grid.fake_quantize`, so that training uses the deployed arithmetic. In
the backward pass, ``m = floor(x/s) + ½`` and ``r = x/s − m`` in [−½, ½), so that r = 0 is the rounding
threshold:

    dy/dx = g_a(r) · 1[in range],   g_a(r) = (a/2) · sech²(a·r) / tanh(a/2)

g_a is the derivative of ``m + tanh(a·r) / (2·tanh(a/2))``, the soft rounding of Agustsson and Theis (2020);
DSQ (Gong et al. 2019) is the same with a = ln(2/α − 1). g_a has mean 1 over a step for every a, and a → 0 is
the straight-through estimator. The gradients of scale and zero-point are those of LSQ (Esser et al. 2020)
with the straight-through term, because they would explode with g_a.

The QGait paper (arXiv 2405.13859) proposes a soft quantizer in a second stage. Only its abstract was
available, so the formulas are from this project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qgait_ptq.quantizer.grid import IntegerGrid, along_channels, fake_quantize

STRAIGHT_THROUGH = 0.0


def rounding_gradient(offset: Tensor, temperature: float) -> Tensor:
    """Return the factor g_a.

    Args:
        offset: distance r to the rounding threshold in steps, in [−½, ½), of any shape.
        temperature: temperature a, at least 0; 0 is the straight-through estimator.

    Example:
        >>> rounding_gradient(torch.tensor([-0.5, 0.0]), 4.0)
        tensor([0.1466, 2.0746])
    """
    if temperature == STRAIGHT_THROUGH:
        return torch.ones_like(offset)
    factor = temperature / (2 * math.tanh(temperature / 2))
    return (1 - (offset * temperature).tanh_().square_()).mul_(factor)


def gradient_mean_square(temperature: float) -> float:
    """Return the mean of g_a² over a step: ``(a/2)·(1/t − t/3)`` with t = tanh(a/2).

    It multiplies from layer to layer, so the temperature stays low and rises late.

    Example:
        >>> round(gradient_mean_square(3.0), 2)
        1.2
    """
    if temperature == STRAIGHT_THROUGH:
        return 1.0
    t = math.tanh(temperature / 2)
    return temperature / 2 * (1 / t - t / 3)


@dataclass(frozen=True)
class TemperatureSchedule:
    """Schedule of the temperature a over a stage, linear from `start` to `end`.

    Example:
        >>> TemperatureSchedule(1.0, 3.0).curve(5)
        [1.0, 1.5, 2.0, 2.5, 3.0]

    Attributes:
        start: temperature at the first step.
        end: temperature at the last step.
    """

    start: float = STRAIGHT_THROUGH
    end: float = STRAIGHT_THROUGH

    def __post_init__(self) -> None:
        if self.start < 0 or self.end < 0:
            raise ValueError(f"a temperature must be at least 0, not {min(self.start, self.end)}")

    def at(self, step: int, steps: int) -> float:
        """Return the temperature at a step of `steps`."""
        return self.start + (self.end - self.start) * step / max(1, steps - 1)

    def curve(self, steps: int) -> list[float]:
        """Return the temperature at every step."""
        return [self.at(step, steps) for step in range(steps)]


HARD = TemperatureSchedule()  # straight-through at every step


class _SoftQuantize(torch.autograd.Function):
    """Hard rounding forward; the gradient of the module's docstring backward."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        grid: IntegerGrid,
        axis: int | None,
        temperature: float,
    ) -> Tensor:
        ctx.save_for_backward(tensor, scale, zero_point)
        ctx.grid, ctx.axis, ctx.temperature = grid, axis, temperature
        # Detached, because the nested function would otherwise prepare its own backward pass.
        return fake_quantize(tensor.detach(), scale.detach(), zero_point.detach(), grid, axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensor, scale, zero_point = ctx.saved_tensors
        grid, axis = ctx.grid, ctx.axis
        step = along_channels(scale, axis, tensor.ndim)
        steps = tensor / step
        rounded = steps.round()
        if zero_point.ndim == 0:  # several times faster: bounds are numbers, and one kernel applies the mask
            low, high = grid.quant_min - float(zero_point), grid.quant_max - float(zero_point)
            levels = rounded.clamp(low, high)
            passed = torch.ops.aten.hardtanh_backward(gradient, rounded, low - 0.5, high + 0.5)
        else:
            shift = along_channels(zero_point, axis, tensor.ndim)
            levels = rounded.clamp(grid.quant_min - shift, grid.quant_max - shift)
            passed = gradient * levels.eq(rounded)
        to_scale = to_zero_point = None
        if ctx.needs_input_grad[1]:
            to_scale = _sum_product(gradient, levels, scale, axis) - _sum_product(passed, steps, scale, axis)
        if ctx.needs_input_grad[2]:
            to_zero_point = _sum_product(passed, step, zero_point, axis) - _sum_product(
                gradient, step, zero_point, axis
            )
        if ctx.needs_input_grad[0] and ctx.temperature != STRAIGHT_THROUGH:
            offset = steps.sub_(steps.floor()).sub_(0.5)
            passed = passed * rounding_gradient(offset, ctx.temperature)
        return passed, to_scale, to_zero_point, None, None, None


def _sum_product(values: Tensor, factors: Tensor, parameter: Tensor, axis: int | None) -> Tensor:
    """Return the sum of a product over all axes along which a parameter is broadcast."""
    if axis is not None and parameter.ndim > 0:
        others = [dimension for dimension in range(values.ndim) if dimension != axis]
        return (values * factors).sum(others)
    if factors.ndim == 0:
        return (values.sum() * factors).reshape(parameter.shape)
    return torch.dot(values.reshape(-1), factors.reshape(-1)).reshape(parameter.shape)


def soft_quantize(
    tensor: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    grid: IntegerGrid,
    axis: int | None = None,
    temperature: float = STRAIGHT_THROUGH,
) -> Tensor:
    """Quantize and dequantize with the soft gradient.

    Args:
        tensor: tensor of any shape.
        scale: scale, scalar, or ``[c]`` along `axis`.
        zero_point: zero-point with the shape of the scale: integers, in a floating-point type if a gradient
            is needed.
        grid: grid of the tensor.
        axis: channel axis; None for one scale per tensor.
        temperature: temperature a of the gradient; 0 is straight-through.
    """
    result: Tensor = _SoftQuantize.apply(tensor, scale, zero_point, grid, axis, temperature)
    return result


class _RoundStraight(torch.autograd.Function):
    """Round with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def round_straight(tensor: Tensor) -> Tensor:
    """Round half to even with a straight-through gradient."""
    result: Tensor = _RoundStraight.apply(tensor)
    return result
