"""Weights whose neighbours cannot saturate a 16-bit sum; see `pair_order` for which are neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from qgait_ptq.quantizer.pair_order import first_of_pairs


def limit_pairs(integers: Tensor, limit: int) -> Tensor:
    """Bring neighbouring weights of the same sign within a sum, by taking half of the excess from each.

    Weights within the limit are returned as they are, so the function is idempotent.

    Args:
        integers: whole numbers ``[o, i, *kernel]``, of at most `limit` in magnitude.
        limit: see `largest_pair_sum`.

    Returns:
        Whole numbers of the same shape and type.
    """
    ordered = _kernel_order(integers)
    limited = ordered
    for first in _pairs(integers):
        one, other = limited[:, first], limited[:, first + 1]
        # Of opposite signs, the sum is smaller than the larger of both.
        excess = ((one + other).abs() - limit).clamp_min(0)
        if not bool(excess.any()):
            continue
        half = torch.div(excess, 2, rounding_mode="floor")
        limited = limited.index_copy(1, first, one - one.sign() * (excess - half))
        limited = limited.index_copy(1, first + 1, other - other.sign() * half)
    if limited is ordered:
        return integers
    return _from_kernel_order(limited, integers.shape)


def widened_scale(weight: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Return the scale of each output channel at which no two neighbours of the weight exceed a sum.

    A channel whose pairs are within the limit keeps its scale. A slightly coarser grid for a whole channel
    costs less than moving single weights: other weights cannot make up for a large change of one.

    Args:
        weight: ``[o, i, *kernel]``.
        scale: ``[o]``.
        limit: see `largest_pair_sum`.
    """
    ordered = _kernel_order(weight)
    widest = torch.zeros_like(ordered[:, 0])
    for first in _pairs(weight):
        widest = torch.maximum(widest, (ordered[:, first] + ordered[:, first + 1]).abs().amax(1))
    return torch.maximum(scale, (widest / limit).to(scale.dtype))


def neighbours(channels: int, taps: int) -> Tensor:
    """Return the neighbours of each weight of an output channel.

    Args:
        channels: input channels of a group.
        taps: positions of the kernel.

    Returns:
        ``[channels · taps, 2]`` int64, in the order of a flattened weight ``[i, *kernel]``: the neighbour
        before and the one behind in kernel order; −1 where there is none.
    """
    size = channels * taps
    # Flattened position of each place in kernel order.
    position = torch.arange(size).reshape(channels, taps).T.flatten()
    found = torch.full((size, 2), -1)
    for first in map(torch.tensor, filter(None, first_of_pairs(channels, taps))):
        found[position[first], 1] = position[first + 1]
        found[position[first + 1], 0] = position[first]
    return found


def _kernel_order(weight: Tensor) -> Tensor:
    """``[o, i, *kernel]`` to ``[o, kernel · i]``."""
    return weight.movedim(1, -1).flatten(1)


def _from_kernel_order(ordered: Tensor, shape: torch.Size) -> Tensor:
    return ordered.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


def _pairs(weight: Tensor) -> list[Tensor]:
    """The first places of a weight's pairs, rule by rule."""
    rules = first_of_pairs(weight.shape[1], weight[0, 0].numel())
    return [torch.tensor(first, device=weight.device) for first in rules if first]
