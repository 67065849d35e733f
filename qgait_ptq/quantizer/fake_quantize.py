"""Fake-quantize modules, which simulate the quantizers of a runtime in the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qgait_ptq.quantizer import ao
from qgait_ptq.quantizer.grid import IntegerGrid, fake_quantize, quantize_bias
from qgait_ptq.quantizer.observers import Observer


class FakeQuantize(ao.FakeQuantizeBase):
    """Quantizes and dequantizes one tensor. In observing mode, its observer sees the tensor instead.

    Attributes:
        grid: grid of the tensor.
        channel_axis: axis with one scale for each channel; None for one scale per tensor.
        scale: scale, float32, scalar or ``[c]``.
        zero_point: zero-point, int32, with the shape of the scale.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: IntegerGrid, observer: Observer, channel_axis: int | None = None) -> None:
        super().__init__()
        self.grid, self.channel_axis = grid, channel_axis
        self.observer = observer
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def forward(self, tensor: Tensor) -> Tensor:
        """Map a tensor ``[...]`` to the same shape."""
        if self.observer_enabled[0] == 1:
            self.observer(tensor)
        if self.fake_quant_enabled[0] == 1:
            return fake_quantize(tensor, self.scale, self.zero_point, self.grid, self.channel_axis)
        return tensor

    def calculate_qparams(self, **_: object) -> tuple[Tensor, Tensor]:
        """Return scale and zero-point for the observer's range."""
        return self.grid.parameters_for(*self.observer.value_range())

    def set_scale(self, scale: Tensor) -> None:
        """Set the scale: a scalar, or one for each channel ``[c]``."""
        self.scale = scale

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale and zero-point; the zero-point is rounded to an integer."""
        self.scale, self.zero_point = scale, zero_point.to(torch.int32)

    def take_range(self) -> None:
        """Set scale and zero-point from the observer."""
        scale, zero_point = self.calculate_qparams()
        device = self.fake_quant_enabled.device
        self.scale, self.zero_point = scale.to(device), zero_point.to(device)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Per-channel parameters are created as scalars and get their shape with their values.
        for name in ("scale", "zero_point"):
            if prefix + name in state:
                device = getattr(self, name).device
                setattr(self, name, torch.empty_like(state[prefix + name], device=device))
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        """Return width, signedness and channel axis as text."""
        kind = "int" if self.grid.signed else "uint"
        return f"{kind}{self.grid.bits}, channel_axis={self.channel_axis}"


class BiasFakeQuantize(nn.Module):
    """Rounds a bias to int32 with the scale of its accumulator: input scale × weight scale.

    Runtimes do this implicitly, so a float bias in the simulation would be a mismatch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True

    def enable(self, enabled: bool) -> None:
        """Switch rounding on or off."""
        self.enabled = enabled

    def forward(self, bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
        """Map bias ``[c]``, scalar input scale and weight scale ``[c]`` to ``[c]``."""
        if not self.enabled:
            return bias
        scale = input_scale * weight_scale
        return (quantize_bias(bias, scale) * scale.double()).to(bias.dtype)


def set_quantizing(module: nn.Module, quantizing: bool) -> None:
    """Switch all quantizers of a module on or off. With quantizers off, it computes in float."""
    for child in module.modules():
        if isinstance(child, FakeQuantize):
            child.enable_fake_quant(quantizing)
        elif isinstance(child, BiasFakeQuantize):
            child.enable(quantizing)


def set_observing(module: nn.Module, observing: bool) -> None:
    """Switch all quantizers of a module between observing in float and quantizing."""
    set_quantizing(module, not observing)
    for child in module.modules():
        if isinstance(child, FakeQuantize):
            child.enable_observer(observing)
