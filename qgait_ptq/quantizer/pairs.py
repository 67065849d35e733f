"""Limits on neighbouring weights that keep pair sums within 16 bits; see `pair_order` for the pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from qgait_ptq.quantizer.pair_order import first_of_pairs


def limit_pairs(integers: Tensor, limit: int) -> Tensor:
    """Limit the sums of neighbouring weights of the same sign. Half of the excess is taken from each.

    Weights within the limit are unchanged, so the function is idempotent.

    Args:
        integers: integers ``[o, i, *kernel]`` with magnitudes of at most `limit`.
        limit: largest sum of magnitudes, see `largest_pair_sum`.

    Returns:
        Integers of the same shape and type.
    """
    ordered = _kernel_order(integers)
    limited = ordered
    for first in _pairs(integers):
        one, other = limited[:, first], limited[:, first + 1]
        # With opposite signs, the magnitude of the sum is below the larger magnitude.
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
    """Return the scale of each output channel at which no two neighbouring weights exceed a sum.

    A channel whose pairs are within the limit keeps its scale. A slightly coarser grid for a complete channel
    costs less than a large change of single weights, which other weights cannot compensate.

    Args:
        weight: float weight ``[o, i, *kernel]``.
        scale: scale ``[o]``.
        limit: largest sum of magnitudes, see `largest_pair_sum`.
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
        Positions ``[channels · taps, 2]`` int64 in a flattened weight ``[i, *kernel]``: the neighbours before
        and after each weight in kernel order; −1 for no neighbour.
    """
    size = channels * taps
    # Flattened position of each weight in kernel order.
    position = torch.arange(size).reshape(channels, taps).T.flatten()
    pairs = torch.full((size, 2), -1)
    for first in map(torch.tensor, filter(None, first_of_pairs(channels, taps))):
        pairs[position[first], 1] = position[first + 1]
        pairs[position[first + 1], 0] = position[first]
    return pairs


def _kernel_order(weight: Tensor) -> Tensor:
    """Return a weight ``[o, i, *kernel]`` as ``[o, kernel · i]``."""
    return weight.movedim(1, -1).flatten(1)


def _from_kernel_order(ordered: Tensor, shape: torch.Size) -> Tensor:
    return ordered.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


def _pairs(weight: Tensor) -> list[Tensor]:
    """Return the first positions of a weight's pairs for each rule."""
    rules = first_of_pairs(weight.shape[1], weight[0, 0].numel())
    return [torch.tensor(first, device=weight.device) for first in rules if first]
