"""Trainable quantizers, which replace quantizers of the graph during training.

Each replaces one module of the graph under the same name. `ActivationTrainer` trains a scale and a
zero-point, `WeightTrainer` the scales or the integers of a weight, and `BiasTrainer` a bias. Parameters have
units in which one learning rate suits all layers: logarithms of scales, shares of a grid, weights in rounding
steps, biases relative to their layer's output.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn

from qgait_ptq.quantizer.addition_orders import Multiple
from qgait_ptq.quantizer.fake_quantize import BiasFakeQuantize, FakeQuantize
from qgait_ptq.quantizer.grid import along_channels, quantize
from qgait_ptq.quantizer.pairs import limit_pairs
from qgait_ptq.quantizer.soft import STRAIGHT_THROUGH, round_straight, soft_quantize

KEPT_ROUNDING = 0.4  # rounding steps, so that a latent weight starts inside the step of its integer
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # limits of the rectified sigmoid (Louizos et al. 2018), as in AdaRound


class WeightMode(StrEnum):
    """Trained quantity of a weight."""

    SCALES = "scales"  # scales; the integers are fixed
    ROUNDING = "rounding"  # rounding up or down, as in AdaRound
    LATENT = "latent"  # the weight itself, with the soft quantizer


class ActivationTrainer(nn.Module):
    """A fake-quantize module of activations with trainable scale and zero-point.

    Attributes:
        temperature: temperature a of the soft gradient.
        drop_probability: probability that a value is not quantized, drawn at each call (QDrop, Wei et al.
            2022).
    """

    levels: Tensor

    def __init__(self, settled: FakeQuantize, multiple: Multiple | None = None) -> None:
        """Start from a calibrated quantizer.

        Args:
            settled: quantizer with scale and zero-point.
            multiple: unit of which the scale stays a multiple, with a straight-through gradient; None for a
                free scale.
        """
        super().__init__()
        self.grid, self.multiple = settled.grid, multiple
        self.temperature, self.drop_probability = STRAIGHT_THROUGH, 0.0
        self.log_scale = nn.Parameter(settled.scale.detach().log())
        levels = self.grid.quant_max - self.grid.quant_min
        self.register_buffer("levels", torch.tensor(float(levels), device=settled.scale.device))
        self.zero_share = nn.Parameter(
            settled.zero_point.float() / levels, requires_grad=not self.grid.symmetric
        )

    @property
    def scale(self) -> Tensor:
        """Return the scale with its gradient."""
        scale = self.log_scale.exp()
        if self.multiple is None:
            return scale
        nearest = torch.full_like(scale, self.multiple.nearest(float(scale.detach())))
        return nearest + (scale - scale.detach())

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the soft gradient."""
        self.temperature = temperature

    def set_drop_probability(self, probability: float) -> None:
        """Set the probability that a value is not quantized."""
        self.drop_probability = probability

    @property
    def zero_point(self) -> Tensor:
        """Return the integer zero-point with a straight-through gradient."""
        rounded = round_straight(self.zero_share * self.levels)
        return rounded.clamp(self.grid.quant_min, self.grid.quant_max)

    def forward(self, tensor: Tensor) -> Tensor:
        """Map a tensor ``[...]`` to the same shape."""
        result = soft_quantize(tensor, self.scale, self.zero_point, self.grid, temperature=self.temperature)
        if self.drop_probability > 0:
            dropped = torch.rand_like(tensor) < self.drop_probability
            result = torch.where(dropped, tensor, result)
        return result

    def settle(self, into: FakeQuantize) -> None:
        """Write the trained scale and zero-point to a fake-quantize module."""
        into.set_parameters(self.scale.detach().clone(), self.zero_point.detach())


class WeightTrainer(nn.Module):
    """A trainable fake-quantize module of a weight.

    Attributes:
        mode: trained quantity.
        temperature: temperature a of the soft gradient of a latent weight.
    """

    integers: Tensor
    lower: Tensor
    no_zero_point: Tensor

    def __init__(self, settled: FakeQuantize, weight: Tensor, reference: Tensor, mode: WeightMode) -> None:
        """Start from a calibrated weight.

        Args:
            settled: quantizer of the weight.
            weight: weight ``[o, ...]`` that it rounds.
            reference: float weight, which gives the start of a latent weight inside its step.
            mode: trained quantity.
        """
        super().__init__()
        self.grid, self.axis, self.mode = settled.grid, settled.channel_axis, mode
        self.temperature = STRAIGHT_THROUGH
        self.hard = False
        self.log_scale = nn.Parameter(
            settled.scale.detach().log(), requires_grad=mode in (WeightMode.SCALES, WeightMode.LATENT)
        )
        integers = quantize(weight.detach(), settled.scale, settled.zero_point, self.grid, self.axis)
        self.register_buffer("integers", integers)
        self.register_buffer("no_zero_point", torch.zeros((), device=weight.device))
        if mode in (WeightMode.ROUNDING, WeightMode.LATENT):
            steps = reference.detach() / along_channels(settled.scale, self.axis, weight.ndim)
            latent = torch.clamp(steps, integers - KEPT_ROUNDING, integers + KEPT_ROUNDING)
            if mode is WeightMode.LATENT:
                self.latent = nn.Parameter(latent)
            else:
                self.register_buffer("lower", latent.floor())
                share = (latent - latent.floor() - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
                self.rounding = nn.Parameter(torch.logit(share))

    @property
    def scale(self) -> Tensor:
        """Return the scale of each channel with its gradient."""
        return self.log_scale.exp()

    @property
    def up(self) -> Tensor:
        """Return the degree to which each weight is rounded up, in [0, 1]."""
        stretched = torch.sigmoid(self.rounding) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
        return stretched.clamp(0, 1)

    def undecided(self, sharpness: float) -> Tensor:
        """Return AdaRound's regularizer ``Σ 1 − |2h − 1|^β``; 0 if every weight is rounded up or down."""
        return (1 - (2 * self.up - 1).abs().pow(sharpness)).sum()

    def steps(self) -> Tensor:
        """Return the weight in units of its scale."""
        if self.mode is WeightMode.LATENT:
            one = torch.ones((), device=self.latent.device)
            return soft_quantize(
                self.latent, one, self.no_zero_point, self.grid, temperature=self.temperature
            )
        if self.mode is WeightMode.ROUNDING:
            up = (self.rounding > 0).to(self.lower.dtype) if self.hard else self.up
            steps = (self.lower + up).clamp(self.grid.quant_min, self.grid.quant_max)
            return self._within_pairs(steps)
        return self.integers

    def _within_pairs(self, steps: Tensor) -> Tensor:
        """Return steps within the grid's pair limit, with a straight-through gradient."""
        if self.grid.pair_limit is None:
            return steps
        return steps + (limit_pairs(steps, self.grid.pair_limit) - steps).detach()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight. Only the shape of the graph's parameter is used."""
        return self.steps() * along_channels(self.scale, self.axis, weight.ndim)

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the soft gradient of a latent weight."""
        self.temperature = temperature

    def settle(self, into: FakeQuantize, weight: Tensor) -> None:
        """Write scale and weight. The weight is on its grid afterwards."""
        self.hard = True
        with torch.no_grad():
            weight.copy_(self(weight))
            into.set_scale(self.scale.detach().clone())


class BiasTrainer(nn.Module):
    """A trainable bias, rounded to int32 as in the runtimes.

    Args:
        settled: module that it replaces.
        bias: bias ``[c]`` at the start.
        magnitude: size of the layer's output by channel, ``[c]``, as the unit of training.
    """

    start: Tensor
    magnitude: Tensor

    def __init__(self, settled: BiasFakeQuantize, bias: Tensor, magnitude: Tensor) -> None:
        super().__init__()
        self.settled = settled
        self.register_buffer("start", bias.detach().clone())
        self.register_buffer("magnitude", magnitude)
        self.shift = nn.Parameter(torch.zeros_like(bias))

    @property
    def bias(self) -> Tensor:
        """Return the bias before rounding."""
        return self.start + self.shift * self.magnitude

    def forward(self, bias: Tensor, *scales: Tensor) -> Tensor:
        """Map bias ``[c]`` and the scales of its accumulator to the rounded bias ``[c]``."""
        moved = self.bias
        with torch.no_grad():
            error = self.settled(moved, *scales) - moved
        return moved + error

    def settle(self, bias: Tensor) -> None:
        """Write the trained bias to the graph's parameter."""
        with torch.no_grad():
            bias.copy_(self.bias)
