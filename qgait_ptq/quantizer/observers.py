"""Observers: each sees the values of one tensor and says which range its grid should cover.

All share one question, `value_range`; the grid turns the answer into scale and zero_point. Min-max, moving
average and histogram are torch.ao's; percentile and mean squared error are searched on a
`StreamingHistogram`, so that any number of sequences is seen in constant memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from qgait_ptq.quantizer import ao
from qgait_ptq.quantizer.grid import IntegerGrid, fake_quantize
from qgait_ptq.quantizer.histogram import StreamingHistogram

SEARCHED_SHARES = torch.linspace(0.1, 1.0, 91)  # of the observed range, tried by the MSE searches
DEFAULT_PERCENTILE, DEFAULT_WEIGHT_PERCENTILE = 99.99, 99.5


class Observer(Protocol):
    """What a fake-quantize module asks of its observer."""

    def __call__(self, tensor: Tensor) -> Tensor:
        """See a tensor; give it back unchanged."""
        ...

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end to be covered: scalars, or ``[c]`` per channel."""
        ...


def _ao_arguments(grid: IntegerGrid) -> dict[str, Any]:
    return {
        "dtype": torch.qint8 if grid.signed else torch.quint8,
        "quant_min": grid.quant_min,
        "quant_max": grid.quant_max,
    }


class MinMaxObserver(ao.MinMaxObserver):
    """Smallest and largest value seen."""

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(**_ao_arguments(grid))

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value seen."""
        return self.min_val, self.max_val


class MovingAverageObserver(ao.MovingAverageMinMaxObserver):
    """Exponential averages of each batch's smallest and largest value (torch.ao, constant 0.01)."""

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(**_ao_arguments(grid))

    def value_range(self) -> tuple[Tensor, Tensor]:
        """The two averages."""
        return self.min_val, self.max_val


class HistogramObserver(ao.HistogramObserver):
    """The range with the least squared error on torch.ao's histogram, at the width of the grid."""

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(**_ao_arguments(grid))
        self.dst_nbins = grid.quant_max - grid.quant_min + 1  # torch.ao always searches for 256 levels

    def value_range(self) -> tuple[Tensor, Tensor]:
        """The searched range."""
        low, high = self._non_linear_param_search()
        return low, high


class _HistogramSearch(ao.ObserverBase):
    """Base of the observers that search on a streaming histogram."""

    def __init__(self, grid: IntegerGrid) -> None:
        super().__init__(dtype=torch.quint8)
        self.grid = grid
        self.histogram = StreamingHistogram()

    def forward(self, tensor: Tensor) -> Tensor:
        """See a tensor."""
        self.histogram.update(tensor.detach())
        return tensor

    def calculate_qparams(self, **_: object) -> tuple[Tensor, Tensor]:
        """Scale and zero_point, as torch.ao asks for them."""
        return self.grid.parameters_for(*self.value_range())

    def value_range(self) -> tuple[Tensor, Tensor]:
        """The range to be covered."""
        raise NotImplementedError


class PercentileObserver(_HistogramSearch):
    """The range that holds a percentage of all values, tails cut on both sides."""

    def __init__(self, grid: IntegerGrid, percentile: float = DEFAULT_PERCENTILE) -> None:
        super().__init__(grid)
        self.percentile = percentile

    def value_range(self) -> tuple[Tensor, Tensor]:
        """The two quantiles."""
        share = self.percentile / 100
        low, high = self.histogram.quantile(1 - share), self.histogram.quantile(share)
        return torch.tensor(low), torch.tensor(high)


class MSEObserver(_HistogramSearch):
    """The share of the observed range with the least squared quantization error."""

    def value_range(self) -> tuple[Tensor, Tensor]:
        """The searched range; both ends shrink together, so that zero_point hardly moves."""
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
    """Smallest and largest weight of each channel."""

    def __init__(self, grid: IntegerGrid, channel_axis: int) -> None:
        super().__init__(ch_axis=channel_axis, qscheme=torch.per_channel_symmetric, **_ao_arguments(grid))

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Ends of each channel, ``[c]``."""
        return self.min_val, self.max_val


class WeightPercentileObserver(WeightMinMaxObserver):
    """For each channel the magnitude that a percentage of its weights does not exceed."""

    def __init__(
        self, grid: IntegerGrid, channel_axis: int, percentile: float = DEFAULT_WEIGHT_PERCENTILE
    ) -> None:
        super().__init__(grid, channel_axis)
        self.channel_axis, self.share = channel_axis, percentile / 100
        self.bound = torch.empty(0)

    def forward(self, tensor: Tensor) -> Tensor:
        """See the weight."""
        magnitudes = tensor.detach().abs().transpose(0, self.channel_axis).flatten(1)
        self.bound = magnitudes.float().quantile(self.share, dim=1)
        return tensor

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Ends of each channel, ``[c]``."""
        return -self.bound, self.bound


class WeightMSEObserver(WeightMinMaxObserver):
    """For each channel the share of its range with the least squared quantization error."""

    def __init__(self, grid: IntegerGrid, channel_axis: int) -> None:
        super().__init__(grid, channel_axis)
        self.grid, self.channel_axis = grid, channel_axis
        self.weight = torch.empty(0)

    def forward(self, tensor: Tensor) -> Tensor:
        """See the weight; a weight is seen once, so it is kept."""
        self.weight = tensor.detach()
        super().forward(tensor)
        return tensor

    def value_range(self) -> tuple[Tensor, Tensor]:
        """Ends of each channel, ``[c]``."""
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
