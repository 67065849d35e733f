"""Observers: each sees the values of one tensor and chooses its range.

All observers return it from `value_range`, and the grid computes scale and zero-point from it. Min-max,
moving average and histogram come from torch.ao. Percentile and mean squared error use a `StreamingHistogram`,
so that memory does not grow with the number of sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from qgait_ptq.quantizer import ao
from qgait_ptq.quantizer.grid import IntegerGrid, fake_quantize
from qgait_ptq.quantizer.histogram import StreamingHistogram

SEARCHED_SHARES = torch.linspace(0.1, 1.0, 91)  # candidates of the MSE search, relative to the observed range
DEFAULT_PERCENTILE, DEFAULT_WEIGHT_PERCENTILE = 99.99, 99.5


class Observer(Protocol):
    """Interface of an observer for its fake-quantize module."""

    def __call__(self, tensor: Tensor) -> Tensor:
        """Observe a tensor, and return it unchanged."""
        ...

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the lower and upper end of the range: scalars, or ``[c]`` per channel."""
        ...


def _ao_arguments(grid: IntegerGrid) -> dict[str, Any]:
    return {
        "dtype": torch.qint8 if grid.signed else torch.quint8,
        "quant_min": grid.quant_min,
        "quant_max": grid.quant_max,
    }


@runtime_checkable
class MergeableObserver(Observer, Protocol):
    """An observer whose range does not depend on the order of tensors, so that processes can share them."""

    def merge(self, other: Self) -> None:
        """Observe all that another observer of the same kind has seen."""
        ...


class MinMaxObserver(ao.MinMaxObserver):
    """Observer of the smallest and largest value."""

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(**_ao_arguments(grid))

    def merge(self, other: Self) -> None:
        """Include the smallest and the largest value of another observer."""
        self.min_val = torch.minimum(self.min_val, other.min_val.to(self.min_val.device))
        self.max_val = torch.maximum(self.max_val, other.max_val.to(self.max_val.device))

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value."""
        return self.min_val, self.max_val


class MovingAverageObserver(ao.MovingAverageMinMaxObserver):
    """Observer of moving averages of each batch's smallest and largest value (torch.ao, constant 0.01)."""

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(**_ao_arguments(grid))

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the two averages."""
        return self.min_val, self.max_val


class HistogramObserver(ao.HistogramObserver):
    """Observer of the range with the least squared error on torch.ao's histogram, at the grid's width."""

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(**_ao_arguments(grid))
        self.dst_nbins = grid.quant_max - grid.quant_min + 1  # torch.ao always searches for 256 levels

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the range with the least error."""
        low, high = self._non_linear_param_search()
        return low, high


class _HistogramSearch(ao.ObserverBase):
    """Base of the observers that search on a streaming histogram."""

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(dtype=torch.quint8)
        self.grid = grid
        self.histogram = StreamingHistogram()

    def forward(self, tensor: Tensor) -> Tensor:
        """Observe a tensor, and return it unchanged."""
        self.histogram.update(tensor.detach())
        return tensor

    def merge(self, other: Self) -> None:
        """Include the values of another observer."""
        self.histogram.merge(other.histogram)

    def calculate_qparams(self, **_: object) -> tuple[Tensor, Tensor]:
        """Return scale and zero-point for torch.ao."""
        return self.grid.parameters_for(*self.value_range())

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the lower and upper end of the range."""
        raise NotImplementedError


class PercentileObserver(_HistogramSearch):
    """Observer of the range without a percentage of values in each tail."""

    def __init__(self, grid: IntegerGrid, percentile: float = DEFAULT_PERCENTILE) -> None:
        super().__init__(grid)
        self.percentile = percentile

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the two quantiles."""
        share = self.percentile / 100
        low, high = self.histogram.quantile(1 - share), self.histogram.quantile(share)
        return torch.tensor(low), torch.tensor(high)


class MSEObserver(_HistogramSearch):
    """Observer of the scaled-down range with the least squared quantization error."""

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the range with the least error. Both ends shrink together to keep the zero-point."""
        low, high = torch.tensor(self.histogram.minimum), torch.tensor(self.histogram.maximum)
        if self.histogram.bound == 0:
            return low, high
        occupied = self.histogram.counts > 0
        values, counts = self.histogram.centres[occupied].float(), self.histogram.counts[occupied]
        values = values.clamp(low, high)
        errors = []
        for share in SEARCHED_SHARES:
            scale, zero_point = self.grid.parameters_for(low * share, high * share)
            difference = fake_quantize(values, scale, zero_point, self.grid) - values
            errors.append((counts * difference.double().square()).sum())
        best = SEARCHED_SHARES[int(torch.stack(errors).argmin())]
        return low * best, high * best


class WeightMinMaxObserver(ao.PerChannelMinMaxObserver):
    """Observer of the smallest and largest weight of each channel."""

    def __init__(self, grid: IntegerGrid, channel_axis: int) -> None:
        super().__init__(ch_axis=channel_axis, qscheme=torch.per_channel_symmetric, **_ao_arguments(grid))

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the ends of each channel's range, ``[c]``."""
        return self.min_val, self.max_val


class WeightPercentileObserver(WeightMinMaxObserver):
    """Observer of the magnitude in each channel that a percentage of its weights does not exceed."""

    def __init__(
        self, grid: IntegerGrid, channel_axis: int, percentile: float = DEFAULT_WEIGHT_PERCENTILE
    ) -> None:
        super().__init__(grid, channel_axis)
        self.channel_axis, self.share = channel_axis, percentile / 100
        self.bound = torch.empty(0)

    def forward(self, tensor: Tensor) -> Tensor:
        """Observe the weight, and return it unchanged."""
        magnitudes = tensor.detach().abs().transpose(0, self.channel_axis).flatten(1)
        bound = magnitudes.float().quantile(self.share, dim=1)
        # A sparse channel has a quantile of zero: its few weights need the whole range.
        self.bound = torch.where(bound > 0, bound, magnitudes.amax(1).float())
        return tensor

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the ends of each channel's range, ``[c]``."""
        return -self.bound, self.bound


class WeightMSEObserver(WeightMinMaxObserver):
    """Observer of the scaled-down range of each channel with the least squared quantization error."""

    def __init__(self, grid: IntegerGrid, channel_axis: int) -> None:
        super().__init__(grid, channel_axis)
        self.grid, self.channel_axis = grid, channel_axis
        self.weight = torch.empty(0)

    def forward(self, tensor: Tensor) -> Tensor:
        """Store the weight, which is observed only once, and return it unchanged."""
        self.weight = tensor.detach()
        super().forward(tensor)
        return tensor

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Return the ends of each channel's range, ``[c]``."""
        low, high = super().value_range()
        others = [axis for axis in range(self.weight.ndim) if axis != self.channel_axis]
        least = torch.full_like(high, torch.inf)
        best = torch.ones_like(high)
        for share in SEARCHED_SHARES.to(high.device):
            scale, zero_point = self.grid.parameters_for(low * share, high * share)
            rounded = fake_quantize(self.weight, scale, zero_point, self.grid, self.channel_axis)
            error = (rounded - self.weight).square().sum(others)
            best = torch.where(error < least, share, best)
            least = torch.minimum(error, least)
        return low * best, high * best


ACTIVATION_OBSERVERS: dict[str, Callable[[IntegerGrid], Observer]] = {
    "minmax": MinMaxObserver,
    "moving-average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
    "histogram": HistogramObserver,
}

WEIGHT_OBSERVERS: dict[str, Callable[[IntegerGrid, int], Observer]] = {
    "minmax": WeightMinMaxObserver,
    "percentile": WeightPercentileObserver,
    "mse": WeightMSEObserver,
}
