"""Kernels that add two quantized tensors, and aligned scales with which all of them give the same integers.

A sum of two quantized tensors is ``rint(a · s_a/s_y + b · s_b/s_y) + zero_point``. Kernels compute it in
different ways. onnxruntime uses fused float32 multiply-adds on x86 and 22-bit integers on ARM64. ARM64 rounds
half away from zero, other kernels half to even. Other runtimes compute the formula directly. Results differ
if a sum is close to the middle of two integers.

No sum is, if ``s_a/s_y = m/k`` and ``s_b/s_y = n/k`` with integers m, n and odd k: the sum is a multiple of
``1/k``, so its distance from a middle is at least ``1/2k``. `align_scales` changes scales slightly to that
form. `differing_pairs` proves the result over all pairs of codes. It needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LARGEST_DENOMINATORS = (1023, 511, 255, 127)  # the first one for which all kernels agree is used
LARGEST_ODD = 2047  # largest recognised denominator; training can raise it
SAME_MULTIPLE = 1e-3  # tolerance in units
FLOAT32_STEP = 2.0**-22  # relative: scales and the unit are rounded to float32
LARGEST_CHANGE = 0.1  # relative; a tensor much smaller than its sum would need more and is not aligned
MULTIPLIER_BITS = 21  # the larger multiplier of the fixed-point kernel is in [2^21, 2^22)
SMALLEST_RATIO, LARGEST_RATIO = 2.0**-14, 2.0**8  # ratios of scales for the fixed-point kernel
SHIFTS = range(13, 32)


@dataclass(frozen=True)
class Codes:
    """Codes of a quantized tensor, from lowest to highest. Values are ``scale · (code − zero_point)``."""

    scale: float
    zero_point: int
    lowest: int
    highest: int

    def all(self) -> Array:
        """Return all codes."""
        return np.arange(self.lowest, self.highest + 1)


@dataclass(frozen=True)
class Addition:
    """Names of the inputs and the output of an addition."""

    left: str
    right: str
    output: str

    def tensors(self) -> tuple[str, str, str]:
        """Return all three names."""
        return self.left, self.right, self.output


@dataclass(frozen=True)
class Multiple:
    """Unit of an aligned scale. The scale is an integer multiple, an odd one if the tensor is a sum."""

    unit: float
    odd: bool

    def nearest(self, scale: float) -> float:
        """Return the closest aligned scale, exact in float32."""
        multiple = scale / self.unit
        rounded = 2 * math.floor(multiple / 2) + 1 if self.odd else max(1, round(multiple))
        return float(np.float32(rounded * self.unit))


def fused_sum(left: Array, right: Array, of: tuple[Codes, Codes, Codes]) -> Array:
    """Add as onnxruntime's x86 kernel, by fused multiply-adds.

    The order of operations was determined with 12 million pairs of codes. The sum starts from the terms of
    the zero-points, and the second tensor is added first.

    Args:
        left: codes of the first tensor.
        right: codes of the second tensor, with a shape that broadcasts.
        of: scales and zero-points of left, right and the output.

    Returns:
        float32 integers with the output's zero-point, before they are limited to its codes.
    """
    a, b, y = of
    left_ratio, right_ratio = _ratios(of)
    right_zero = np.asarray(right_ratio * np.float32(b.zero_point))
    zeros = _multiply_add(np.asarray(a.zero_point), left_ratio, right_zero)
    total = _multiply_add(right, right_ratio, np.float32(y.zero_point) - zeros)
    return np.asarray(np.rint(_multiply_add(left, left_ratio, total)))


def fixed_point_sum(left: Array, right: Array, of: tuple[Codes, Codes, Codes]) -> Array:
    """Add as onnxruntime's ARM64 kernel: 22-bit multipliers, and a shift that rounds half away from zero.

    Arguments and result are those of `fused_sum`.
    """
    a, b, y = of
    ratios = _ratios(of)
    exponent = int(np.floor(np.log2(max(ratios))))
    shift = MULTIPLIER_BITS - exponent
    if not all(SMALLEST_RATIO <= ratio < LARGEST_RATIO for ratio in ratios) or shift not in SHIFTS:
        return plain_sum(left, right, of)
    left_factor, right_factor = (int(np.rint(ratio * 2.0**shift)) for ratio in ratios)
    total = (left.astype(np.int64) - a.zero_point) * left_factor
    total = total + (right.astype(np.int64) - b.zero_point) * right_factor
    rounded = (total - (total < 0) + (1 << (shift - 1))) >> shift
    return np.asarray(rounded + y.zero_point)


def plain_sum(left: Array, right: Array, of: tuple[Codes, Codes, Codes]) -> Array:
    """Add in float32, as the simulation and kernels between DequantizeLinear and QuantizeLinear.

    Arguments and result are those of `fused_sum`.
    """
    terms = (
        np.float32(one.scale) * (codes.astype(np.int64) - one.zero_point).astype(np.float32)
        for codes, one in zip((left, right), of, strict=False)
    )
    y = of[2]
    return np.asarray(np.rint(sum(terms) / np.float32(y.scale)) + y.zero_point)


def differing_pairs(left: Codes, right: Codes, output: Codes) -> int:
    """Return the number of pairs of codes whose sum differs between kernels, of 65,536 pairs at 8 bits."""
    of = (left, right, output)
    pairs = (left.all()[:, None], right.all()[None, :])
    sums = [
        np.clip(kernel(*pairs, of).astype(np.int64), output.lowest, output.highest)
        for kernel in (fused_sum, fixed_point_sum, plain_sum)
    ]
    return int(np.count_nonzero((sums[0] != sums[1]) | (sums[0] != sums[2])))


def find_multiples(additions: Sequence[Addition], tensors: Mapping[str, Codes]) -> dict[str, Multiple]:
    """Return the units of aligned scales, by tensor name. Other tensors are left out.

    Args:
        additions: additions of the graph.
        tensors: codes of tensors, by name.
    """
    multiples: dict[str, Multiple] = {}
    for group in _connected(additions):
        unit = _unit(group, tensors)
        sums = {addition.output for addition in group}
        if unit is not None and _agree(group, tensors):
            multiples |= {name: Multiple(unit, name in sums) for one in group for name in one.tensors()}
    return multiples


def align_scales(additions: Sequence[Addition], tensors: Mapping[str, Codes]) -> dict[str, float]:
    """Find scales, close to the given ones, with which all kernels add to the same integers.

    Tensors that additions connect get scales ``unit · k`` with an integer k, which is odd for sums. Aligned
    tensors keep their scales.

    Args:
        additions: additions of the graph.
        tensors: codes of tensors, by name.

    Returns:
        Scales by name, exact in float32, of tensors that are or can be aligned.
    """
    known = find_multiples(additions, tensors)
    aligned = {name: tensors[name].scale for name in known}
    for group in _connected(additions):
        if group[0].output in known:
            continue
        for denominator in LARGEST_DENOMINATORS:
            scales = _aligned_group(group, tensors, denominator)
            if scales is not None:
                aligned |= scales
                break
    return aligned


def _aligned_group(
    group: Sequence[Addition], tensors: Mapping[str, Codes], denominator: int
) -> dict[str, float] | None:
    """Return scales of connected tensors; None if kernels would differ, or a scale would change too much."""
    sums = {addition.output for addition in group}
    names = {name for addition in group for name in addition.tensors()}
    unit = max(tensors[name].scale for name in sums) / denominator
    scales = {}
    for name in sorted(names):
        scales[name] = Multiple(unit, name in sums).nearest(tensors[name].scale)
        if abs(scales[name] / tensors[name].scale - 1) > LARGEST_CHANGE:
            return None
    moved = {name: replace(tensors[name], scale=scale) for name, scale in scales.items()}
    return scales if _agree(group, moved) else None


def _agree(group: Sequence[Addition], tensors: Mapping[str, Codes]) -> bool:
    return not any(differing_pairs(*(tensors[name] for name in one.tensors())) for one in group)


def _unit(group: Sequence[Addition], tensors: Mapping[str, Codes]) -> float | None:
    """Return the largest scale of a sum over the largest odd number that makes all scales multiples."""
    sums = {addition.output for addition in group}
    names = sorted({name for addition in group for name in addition.tensors()})
    scales = np.array([tensors[name].scale for name in names])
    is_sum = np.array([name in sums for name in names])
    for denominator in range(LARGEST_ODD, 0, -2):
        unit = float(scales[is_sum].max()) / denominator
        multiples = np.rint(scales / unit)
        exact = np.abs(scales / unit - multiples) < SAME_MULTIPLE + multiples * FLOAT32_STEP
        if exact.all() and multiples.all() and (multiples[is_sum] % 2).all():
            return unit
    return None


def _connected(additions: Sequence[Addition]) -> Iterator[list[Addition]]:
    """Yield groups of additions that share tensors."""
    left_over = list(additions)
    while left_over:
        group, names = [left_over.pop(0)], set[str]()
        for addition in group:  # the group grows meanwhile
            names |= set(addition.tensors())
            joined = [one for one in left_over if names & set(one.tensors())]
            group += joined
            left_over = [one for one in left_over if one not in joined]
        yield group


def _ratios(of: tuple[Codes, Codes, Codes]) -> tuple[np.float32, np.float32]:
    a, b, y = (np.float32(one.scale) for one in of)
    return np.float32(a / y), np.float32(b / y)


def _multiply_add(integers: Array, factor: np.float32, summand: Array) -> NDArray[np.float32]:
    """Return a multiply-add that is rounded once. float64 represents byte times float32 exactly."""
    product = integers.astype(np.float64) * np.float64(factor)
    return np.asarray(product + np.asarray(summand, np.float64)).astype(np.float32)
