"""Arithmetic of integer kernels: exact sums, and how they are brought to another scale.

float32 enters where the kernels have it, in the quotient of scales and in the product with it, and is rounded
where they round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.quantizer.addition_orders import Codes, fused_sum

Array = NDArray[Any]


@dataclass(frozen=True)
class Quantized:
    """Integers that stand for ``scale · (integers − zero_point)``.

    Attributes:
        integers: of a tensor.
        scale: float32, scalar; ``[c]`` for weights, along their first axis.
        zero_point: like scale.
    """

    integers: Array
    scale: NDArray[np.float32]
    zero_point: Array

    def centred(self) -> NDArray[np.float64]:
        """Integers less zero_point; float64 holds all sums of products of bytes exactly."""
        zero_point = self.zero_point.astype(np.float64)
        if zero_point.ndim == 1:
            zero_point = zero_point.reshape(-1, *[1] * (self.integers.ndim - 1))
        return np.asarray(self.integers.astype(np.float64) - zero_point)


@dataclass(frozen=True)
class Sums:
    """Exact sums of a layer, and what one of them stands for in each channel of axis 1.

    Attributes:
        integers: ``[n, c, ...]``.
        scale: ``s_x · s_w``, float32 ``[c]``.
    """

    integers: NDArray[np.float64]
    scale: NDArray[np.float32]


@dataclass(frozen=True)
class Terms:
    """Quantized tensors that are added; `rectified` where a ReLU follows."""

    left: Quantized
    right: Quantized
    rectified: bool = False


@dataclass(frozen=True)
class Bent:
    """A quantized tensor behind a LeakyReLU."""

    source: Quantized
    slope: np.float32


@dataclass(frozen=True)
class Joined:
    """Quantized tensors side by side, each with its own scale."""

    pieces: list[Quantized]
    axis: int


def quantize_floats(floats: Array, scale: Array, zero_point: Array) -> Array:
    """As QuantizeLinear: divide, round half to even, add, saturate."""
    return saturate(np.rint(floats / scale) + np.float64(zero_point), zero_point.dtype)


def requantize(value: Any, scale: Array) -> NDArray[np.float32]:
    """Integers of an output's scale, before zero_point and saturation."""
    if isinstance(value, Sums):
        factor = (value.scale / scale).astype(np.float32)
        shape = [1, -1] + [1] * (value.integers.ndim - 2)
        return np.rint(value.integers.astype(np.float32) * factor.reshape(shape))
    if isinstance(value, Bent):
        floats = dequantize(value.source)
        return np.rint(np.where(floats < 0, floats * value.slope, floats) / scale)
    if isinstance(value, Joined):
        return np.rint(np.concatenate([dequantize(piece) for piece in value.pieces], value.axis) / scale)
    return np.rint(dequantize(value) / scale)


def add_terms(terms: Terms, scale: Array, zero_point: Array) -> NDArray[np.float32]:
    """As onnxruntime's QLinearAdd on x86, see `fused_sum`. zero_point is in it already."""
    output = Quantized(np.empty(0), scale.astype(np.float32), zero_point)
    of = (codes_of(terms.left), codes_of(terms.right), codes_of(output))
    rounded = fused_sum(terms.left.integers, terms.right.integers, of)
    return np.maximum(rounded, np.float32(zero_point)) if terms.rectified else rounded


def codes_of(value: Quantized) -> Codes:
    """Return scale, zero-point and limits of a tensor's codes."""
    limits = np.iinfo(value.zero_point.dtype)
    return Codes(float(value.scale), int(value.zero_point), int(limits.min), int(limits.max))


def dequantize(value: Quantized) -> NDArray[np.float32]:
    """What integers stand for."""
    return np.asarray(value.centred().astype(np.float32) * value.scale)


def saturate(integers: Array, dtype: Any) -> Array:
    """Integers that a type can hold."""
    limits = np.iinfo(dtype)
    return np.clip(integers, limits.min, limits.max).astype(dtype)
