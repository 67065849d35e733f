"""The integer grid, and the arithmetic of quantization exactly as in the runtimes.

``q = clip(rint(x / scale) + zero_point, quant_min, quant_max)``, ``y = scale · (q − zero_point)``: divide,
round half to even, add. torch's own fake-quantize multiplies by ``1 / scale`` instead and differs in about
one value of a million, so it is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qgait_ptq.quantizer.pairs import limit_pairs

SMALLEST_SCALE = 1e-12  # scale of a channel or tensor of zeros
INT32_MAX = 2**31 - 1
BIAS_HEADROOM = 2.0  # a bias takes at most half of the int32 range; the sums need the rest


@dataclass(frozen=True)
class IntegerGrid:
    """The integers that a quantized tensor can take.

    Attributes:
        bits: width, 2 to 8. Unsigned grids can have 1 bit, which is a threshold.
        signed: whether the grid is ``−2^(bits−1) … 2^(bits−1) − 1`` instead of ``0 … 2^bits − 1``.
        symmetric: whether the zero-point is 0. Signed grids are then ``±(2^(bits−1) − 1)``, so that the
            largest weight of either sign is representable.
        pair_limit: largest sum of the magnitudes of two neighbouring weights ``[o, i, *kernel]`` of the same
            sign, see `pairs`; None for no limit.
    """

    bits: int
    signed: bool
    symmetric: bool
    pair_limit: int | None = None

    def __post_init__(self) -> None:
        if not 1 + self.signed <= self.bits <= 8:
            raise ValueError(f"a grid must have {1 + self.signed} to 8 bits, not {self.bits}")
        if self.pair_limit is not None and self.pair_limit < self.quant_max:
            raise ValueError(f"a pair limit of {self.pair_limit} excludes integers up to {self.quant_max}")

    @property
    def quant_min(self) -> int:
        """Return the smallest integer."""
        if not self.signed:
            return 0
        return int(self.symmetric) - (1 << (self.bits - 1))

    @property
    def quant_max(self) -> int:
        """Return the largest integer."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def parameters_for(self, minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero-point of a range.

        Args:
            minimum: lower ends of any shape.
            maximum: upper ends of the same shape.

        Returns:
            Scale (float32) and zero-point (int32). The range is widened to contain zero, so that zero is
            always representable.
        """
        low, high = minimum.float().clamp_max(0), maximum.float().clamp_min(0)
        if self.symmetric:
            scale = torch.maximum(-low, high) / self.quant_max
            return scale.clamp_min(SMALLEST_SCALE), torch.zeros_like(scale, dtype=torch.int32)
        scale = ((high - low) / (self.quant_max - self.quant_min)).clamp_min(SMALLEST_SCALE)
        zero_point = (self.quant_min - low / scale).round().clamp(self.quant_min, self.quant_max)
        return scale, zero_point.to(torch.int32)


def along_channels(parameter: Tensor, axis: int | None, dimensions: int) -> Tensor:
    """Reshape a per-channel parameter ``[c]`` to broadcast against a tensor. Others are unchanged."""
    if axis is None:
        return parameter
    shape = [1] * dimensions
    shape[axis] = -1
    return parameter.reshape(shape)


def quantize(
    tensor: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid, axis: int | None = None
) -> Tensor:
    """Return the integers of a tensor as float32.

    Args:
        tensor: tensor of any shape.
        scale: scale, scalar, or ``[c]`` along `axis`.
        zero_point: zero-point with the shape of the scale.
        grid: grid of the tensor.
        axis: channel axis; None for one scale per tensor.
    """
    scale = along_channels(scale, axis, tensor.ndim)
    zero_point = along_channels(zero_point, axis, tensor.ndim)
    integers = tensor.div(scale).round_().add_(zero_point).clamp_(grid.quant_min, grid.quant_max)
    return integers if grid.pair_limit is None else limit_pairs(integers, grid.pair_limit)


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize. The gradient is straight-through inside the range and zero outside."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        grid: IntegerGrid,
        axis: int | None,
    ) -> Tensor:
        if ctx.needs_input_grad[0]:
            unclipped = tensor / along_channels(scale, axis, tensor.ndim)
            unclipped = unclipped.round_() + along_channels(zero_point, axis, tensor.ndim)
            ctx.save_for_backward((unclipped >= grid.quant_min) & (unclipped <= grid.quant_max))
        if zero_point.ndim == 0 and zero_point.device.type == "cpu" and grid.pair_limit is None:
            # The same values in two passes over memory less; on a GPU, the processor would have to wait.
            shift = int(zero_point)
            levels = tensor.div(scale).round_().clamp_(grid.quant_min - shift, grid.quant_max - shift)
            return levels.mul_(scale)
        integers = quantize(tensor, scale, zero_point, grid, axis)
        integers.sub_(along_channels(zero_point, axis, tensor.ndim))
        return integers.mul_(along_channels(scale, axis, tensor.ndim))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None


def fake_quantize(
    tensor: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid, axis: int | None = None
) -> Tensor:
    """Round a tensor to its grid, and return real values. The arguments are those of `quantize`."""
    result: Tensor = _FakeQuantize.apply(tensor, scale, zero_point, grid, axis)
    return result


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Return the int32 integers of a bias as float64, because float32 cannot represent all of them.

    Args:
        bias: bias ``[c]``.
        scale: scale of the input times scale of the weight, ``[c]``.
    """
    return (bias.double() / scale.double()).round().clamp(-INT32_MAX, INT32_MAX)


def smallest_scale(bias: Tensor, input_scale: Tensor) -> Tensor:
    """Return the smallest weight scale of each channel, ``[o]``: its bias and its sums fit into int32.

    Args:
        bias: float bias, ``[o]``.
        input_scale: scale of the layer's input.
    """
    return bias.abs() * (BIAS_HEADROOM / INT32_MAX) / input_scale
