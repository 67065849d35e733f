"""Saturation of a layer's sums on x86 processors without VNNI: the arithmetic of ``vpmaddubsw``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.quantizer.pair_order import INT16_MAX, first_of_pairs

LARGEST_BYTE = 255


def saturation_loss(
    codes: NDArray[Any],
    weight: NDArray[Any],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> NDArray[np.int64]:
    """Return the difference between saturating and exact pair sums.

    Pairs are those of onnxruntime: positions 2m and 2m + 1 in kernel order, see `quantizer.pair_order`.

    Args:
        codes: padded uint8 activations ``[n, c, *space]``, or ``[n, c]`` for a matrix product.
        weight: weight ``[o, c / groups, *kernel]``.
        strides: stride of each spatial axis.
        dilations: dilation of each spatial axis.
        groups: number of channel groups. Depthwise layers do not saturate.

    Returns:
        Saturated minus exact sums, ``[n, o, *space]``.
    """
    outputs, channels, *kernel = weight.shape
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    output_size = [
        (extent - width) // stride + 1
        for extent, width, stride in zip(codes.shape[2:], reach, strides, strict=True)
    ]
    lost = np.zeros((len(codes), outputs, *output_size), np.int64)
    if groups > 1 and (groups, 1) == weight.shape[:2]:
        return lost
    taps = list(np.ndindex(*kernel))

    def codes_at(channel: int, tap: tuple[int, ...]) -> NDArray[np.int64]:
        """Return the codes that a weight is multiplied with, ``[n, *space]``."""
        window: tuple[slice, ...] = tuple(
            slice(offset * step, offset * step + (count - 1) * stride + 1, stride)
            for offset, step, count, stride in zip(tap, dilations, output_size, strides, strict=True)
        )
        return np.asarray(codes[:, channel][(slice(None), *window)], np.int64)

    ordered = np.moveaxis(weight.astype(np.int64), 1, -1).reshape(outputs, -1)
    by_position, _ = first_of_pairs(channels, len(taps))
    one, other = ordered[:, by_position], ordered[:, [position + 1 for position in by_position]]
    unsafe = (one * other > 0) & (np.abs(one + other) * LARGEST_BYTE > INT16_MAX)
    for output, pair in np.argwhere(unsafe):
        first = by_position[pair]
        base = output // (outputs // groups) * channels
        total = np.zeros_like(lost[:, output])
        for position in (first, first + 1):
            tap, channel = divmod(position, channels)
            total += ordered[output, position] * codes_at(base + channel, taps[tap])
        lost[:, output] += np.clip(total, -INT16_MAX - 1, INT16_MAX) - total
    return lost
