"""Pairs of neighbouring weights whose products a processor can add in 16 bits. Imports nothing.

x86 processors without VNNI multiply uint8 activations by int8 weights with ``vpmaddubsw``. The instruction
adds the products of two neighbouring weights into a saturating int16. The sum is exact for every input if,
for neighbours of the same sign, ``(|w1| + |w2|) · largest code <= 32,767``. Neighbours of opposite sign never
saturate.

Weights are neighbours in *kernel order*, ``(kernel axes..., input channel)``. Runtimes use two rules:
positions 2m and 2m + 1 (im2col and matrix products), and channels 2j and 2j + 1 of one kernel tap (kernels
that block channels). Both rules give the same pairs if the number of input channels is even.
"""

from __future__ import annotations

INT16_MAX = 2**15 - 1


def largest_pair_sum(largest_code: int) -> int:
    """Return the largest ``|w1| + |w2|`` of the same sign that cannot saturate.

    Args:
        largest_code: largest activation code that the layer can receive, 1 to 255.
    """
    return INT16_MAX // largest_code


def first_of_pairs(channels: int, taps: int) -> tuple[list[int], list[int]]:
    """Return the positions in kernel order whose next position is a neighbour.

    Args:
        channels: input channels of a group.
        taps: positions of the kernel.

    Returns:
        Positions of the first rule, and additional positions of the second. Pairs of one list do not overlap.
    """
    by_place = list(range(0, channels * taps - 1, 2))
    by_channel = [
        tap * channels + channel for tap in range(1, taps, 2) for channel in range(0, channels - 1, 2)
    ]
    return by_place, by_channel if channels % 2 else []
