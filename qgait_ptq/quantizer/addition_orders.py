"""How kernels add two quantized tensors, and the scales with which all of them give the same integers.

A sum of two quantized tensors is ``rint(a · s_a/s_y + b · s_b/s_y) + zero_point``. Kernels compute it in
different ways: onnxruntime with fused multiply-adds of float32 on x86 and with integers of 22 bits on ARM64
(half away from zero there, half to even elsewhere), others as it is written. They disagree where a sum lies
close to the middle of two integers.

No sum does where ``s_a/s_y = m/k`` and ``s_b/s_y = n/k`` with whole m, n and odd k: the sum is a multiple of
``1/k``, and no closer to a middle than ``1/2k``. `align_scales` moves scales by a small part so that they are
of that kind, `differing_pairs` proves it: it tries all pairs of codes. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LARGEST_DENOMINATORS = (1023, 511, 255, 127)  # the first that all kernels agree with is taken
LARGEST_ODD = 2047  # that alignment is recognised with; learning may have raised it
SAME_MULTIPLE = 1e-3  # of a unit
FLOAT32_STEP = 2.0**-22  # relative: scales and the unit are rounded to float32
LARGEST_CHANGE = 0.1  # of a scale; a tensor so much smaller than its sum is left as it is
MULTIPLIER_BITS = 21  # of the fixed-point kernel: the larger multiplier is in [2^21, 2^22)
SMALLEST_RATIO, LARGEST_RATIO = 2.0**-14, 2.0**8  # of scales that the fixed-point kernel takes
SHIFTS = range(13, 32)


@dataclass(frozen=True)
class Codes:
    """A quantized tensor's integers: ``scale · (code − zero_point)``, codes from lowest to highest."""

    scale: float
    zero_point: int
    lowest: int
    highest: int

    def all(self) -> Array:
        """Every code."""
        return np.arange(self.lowest, self.highest + 1)


@dataclass(frozen=True)
class Addition:
    """Names of the tensors that an addition reads and gives."""

    left: str
    right: str
    output: str

    def tensors(self) -> tuple[str, str, str]:
        """All three."""
        return self.left, self.right, self.output


@dataclass(frozen=True)
class Multiple:
    """Unit of an aligned scale, which is a whole multiple of it: an odd one if the tensor is a sum."""

    unit: float
    odd: bool

    def nearest(self, scale: float) -> float:
        """The closest scale of this kind, exact in float32."""
        multiple = scale / self.unit
        whole = 2 * math.floor(multiple / 2) + 1 if self.odd else max(1, round(multiple))
        return float(np.float32(whole * self.unit))


def fused_sum(left: Array, right: Array, of: tuple[Codes, Codes, Codes]) -> Array:
    """As onnxruntime's x86 kernel, found by trying orders on 12 million pairs: fused multiply-adds.

    The sum starts from the zero-points' part; the second term comes first.

    Args:
        left: codes.
        right: codes, of a shape that broadcasts.
        of: what the codes of left, right and the output stand for.

    Returns:
        float32 integers with the output's zero_point, before they are cut to its codes.
    """
    a, b, y = of
    left_ratio, right_ratio = _ratios(of)
    right_zero = np.asarray(right_ratio * np.float32(b.zero_point))
    zeros = _multiply_add(np.asarray(a.zero_point), left_ratio, right_zero)
    total = _multiply_add(right, right_ratio, np.float32(y.zero_point) - zeros)
    return np.asarray(np.rint(_multiply_add(left, left_ratio, total)))


def fixed_point_sum(left: Array, right: Array, of: tuple[Codes, Codes, Codes]) -> Array:
    """As onnxruntime's ARM64 kernel: multipliers of 22 bits, a shift that rounds half away from zero.

    Arguments and result as of `fused_sum`.
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
    """As it is written, in float32: the simulation, and kernels between DequantizeLinear and QuantizeLinear.

    Arguments and result as of `fused_sum`.
    """
    terms = (
        np.float32(one.scale) * (codes.astype(np.int64) - one.zero_point).astype(np.float32)
        for codes, one in zip((left, right), of, strict=False)
    )
    y = of[2]
    return np.asarray(np.rint(sum(terms) / np.float32(y.scale)) + y.zero_point)


def differing_pairs(left: Codes, right: Codes, output: Codes) -> int:
    """Count the pairs of codes whose sum is not the same integer in all kernels; 65,536 pairs at 8 bits."""
    of = (left, right, output)
    pairs = (left.all()[:, None], right.all()[None, :])
    sums = [
        np.clip(kernel(*pairs, of).astype(np.int64), output.lowest, output.highest)
        for kernel in (fused_sum, fixed_point_sum, plain_sum)
    ]
    return int(np.count_nonzero((sums[0] != sums[1]) | (sums[0] != sums[2])))


def find_multiples(additions: Sequence[Addition], tensors: Mapping[str, Codes]) -> dict[str, Multiple]:
    """Say of what unit the scales of aligned tensors are multiples; other tensors are left out.

    Args:
        additions: what is added.
        tensors: name → its codes.
    """
    found: dict[str, Multiple] = {}
    for group in _connected(additions):
        unit = _unit(group, tensors)
        sums = {addition.output for addition in group}
        if unit is not None and _agree(group, tensors):
            found |= {name: Multiple(unit, name in sums) for one in group for name in one.tensors()}
    return found


def align_scales(additions: Sequence[Addition], tensors: Mapping[str, Codes]) -> dict[str, float]:
    """Find scales, close to those given, with which all kernels add to the same integers.

    Tensors that additions connect get scales ``unit · k`` with whole k, odd for sums. Those that have such
    scales already keep them.

    Args:
        additions: what is added.
        tensors: name → its codes.

    Returns:
        Name → scale, exact in float32, of the tensors that are or can be aligned.
    """
    done = find_multiples(additions, tensors)
    aligned = {name: tensors[name].scale for name in done}
    for group in _connected(additions):
        if group[0].output in done:
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
    """Scales of connected tensors; None where kernels would differ, or a scale would change too much."""
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
    """The largest scale of a sum over the largest odd number that makes multiples of all."""
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
    """Additions that share tensors, in groups."""
    left_over = list(additions)
    while left_over:
        group, names = [left_over.pop(0)], set[str]()
        for addition in group:  # grows
            names |= set(addition.tensors())
            joined = [one for one in left_over if names & set(one.tensors())]
            group += joined
            left_over = [one for one in left_over if one not in joined]
        yield group


def _ratios(of: tuple[Codes, Codes, Codes]) -> tuple[np.float32, np.float32]:
    a, b, y = (np.float32(one.scale) for one in of)
    return np.float32(a / y), np.float32(b / y)


def _multiply_add(integers: Array, factor: np.float32, summand: Array) -> NDArray[np.float32]:
    """Rounded once, at its end: float64 holds products of a byte and a float32 exactly."""
    product = integers.astype(np.float64) * np.float64(factor)
    return np.asarray(product + np.asarray(summand, np.float64)).astype(np.float32)
