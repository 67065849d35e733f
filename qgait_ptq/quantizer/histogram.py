"""A histogram of a stream of tensors with unknown range."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

HALF_BINS = 8192  # bins on each side of zero; at least half of them are below the largest value
PIECE = 2**20  # values that are counted at a time


class StreamingHistogram:
    """Counts over ``[-bound, bound]``, where `bound` is a power of two that doubles as needed.

    Doubling merges neighbouring bins exactly, so the result does not depend on the order of the batches.
    Exact zeros are frequent after ReLU and representable in every grid, so they are counted separately.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * HALF_BINS, dtype=torch.float64)
        self.zeros = 0
        self.bound = 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def update(self, tensor: Tensor) -> None:
        """Count the values of a tensor.

        Raises:
            ValueError: a value is not finite.
        """
        if tensor.numel() == 0:
            return
        low, high = (float(end) for end in torch.aminmax(tensor))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values are not finite")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._widen(max(-low, high))
        if self.bound == 0:
            self.zeros += tensor.numel()
            return
        zeros = int(torch.count_nonzero(tensor == 0))  # faster than counting floats
        for piece in tensor.float().flatten().split(PIECE):
            # Both factors are powers of two, so that no value is rounded into another bin.
            bins = (piece / self.bound).mul_(HALF_BINS).floor_().to(torch.int32)
            bins = bins.add_(HALF_BINS).clamp_(max=2 * HALF_BINS - 1)
            self.counts += torch.bincount(bins, minlength=2 * HALF_BINS).double().cpu()
        self.counts[HALF_BINS] -= zeros  # the bin that starts at zero
        self.zeros += zeros

    def merge(self, other: StreamingHistogram) -> None:
        """Count the values of another histogram, too: the result is that of one histogram of all values."""
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.zeros += other.zeros
        if other.bound == 0:
            return
        same = copy.deepcopy(other)
        self._double_to(other.bound)
        same._double_to(self.bound)
        self.counts = self.counts + same.counts

    def _widen(self, largest: float) -> None:
        """Double the bound until it exceeds a value: bins do not contain their upper end."""
        if largest > 0:
            _, exponent = math.frexp(largest)
            self._double_to(2.0**exponent)

    def _double_to(self, bound: float) -> None:
        self.bound = self.bound or bound
        while self.bound < bound:
            merged = self.counts.reshape(HALF_BINS, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[HALF_BINS // 2 : HALF_BINS // 2 + HALF_BINS] = merged
            self.bound *= 2

    @property
    def centres(self) -> Tensor:
        """Return the centres of the bins, ``[2 · HALF_BINS]`` float64."""
        width = self.bound / HALF_BINS
        return (torch.arange(2 * HALF_BINS, dtype=torch.float64) - HALF_BINS + 0.5) * width

    def quantile(self, share: float) -> float:
        """Return the value below which a share (0 to 1) of all values lies, zeros included."""
        if self.bound == 0:
            return 0.0
        counts = self.counts.clone()
        counts[HALF_BINS] += self.zeros
        cumulative = counts.cumsum(0)
        index = int(torch.searchsorted(cumulative, share * cumulative[-1]))
        value = float(self.centres[min(index, 2 * HALF_BINS - 1)])
        return min(max(value, self.minimum), self.maximum)
