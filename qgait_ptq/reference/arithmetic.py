"""Arithmetic of integer kernels: exact sums, and their conversion to another scale.

Like the kernels, it uses float32 for the quotient of scales and for the product with it, and rounds at the
same positions.
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
        integers: integers of the tensor.
        scale: float32 scalar, or ``[c]`` for weights, along their first axis.
        zero_point: zero-point with the shape of the scale.
    """

    integers: Array
    scale: NDArray[np.float32]
    zero_point: Array

    def centred(self) -> NDArray[np.float64]:
        """Return integers minus zero-point. float64 represents all sums of products of bytes exactly."""
        zero_point = self.zero_point.astype(np.float64)
        if zero_point.ndim == 1:
            zero_point = zero_point.reshape(-1, *[1] * (self.integers.ndim - 1))
        return np.asarray(self.integers.astype(np.float64) - zero_point)


@dataclass(frozen=True)
class Sums:
    """Exact sums of a layer, and their scale in each channel of axis 1.

    Attributes:
        integers: sums ``[n, c, ...]``.
        scale: scale ``s_x · s_w``, float32 ``[c]``.
    """

    integers: NDArray[np.float64]
    scale: NDArray[np.float32]


@dataclass(frozen=True)
class Terms:
    """Quantized tensors that are added. `rectified` says whether a ReLU follows."""

    left: Quantized
    right: Quantized
    rectified: bool = False


@dataclass(frozen=True)
class Bent:
    """A quantized tensor after a LeakyReLU."""

    source: Quantized
    slope: np.float32


@dataclass(frozen=True)
class Joined:
    """Concatenated quantized tensors, each with its own scale."""

    pieces: list[Quantized]
    axis: int


def quantize_floats(floats: Array, scale: Array, zero_point: Array) -> Array:
    """Quantize as QuantizeLinear: divide, round half to even, add the zero-point, saturate."""
    return saturate(np.rint(floats / scale) + np.float64(zero_point), zero_point.dtype)


def requantize(value: Any, scale: Array) -> NDArray[np.float32]:
    """Return integers in an output's scale, before zero-point and saturation."""
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
    """Add as onnxruntime's QLinearAdd on x86, see `fused_sum`. The result contains the zero-point."""
    output = Quantized(np.empty(0), scale.astype(np.float32), zero_point)
    of = (codes_of(terms.left), codes_of(terms.right), codes_of(output))
    rounded = fused_sum(terms.left.integers, terms.right.integers, of)
    return np.maximum(rounded, np.float32(zero_point)) if terms.rectified else rounded


def codes_of(value: Quantized) -> Codes:
    """Return scale, zero-point and limits of a tensor's codes."""
    limits = np.iinfo(value.zero_point.dtype)
    return Codes(float(value.scale), int(value.zero_point), int(limits.min), int(limits.max))


def dequantize(value: Quantized) -> NDArray[np.float32]:
    """Return the real values of integers."""
    return np.asarray(value.centred().astype(np.float32) * value.scale)


def saturate(integers: Array, dtype: Any) -> Array:
    """Return integers, limited to the range of a type."""
    limits = np.iinfo(dtype)
    return np.clip(integers, limits.min, limits.max).astype(dtype)
