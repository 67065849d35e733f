import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qgait_ptq.quantizer.grid import IntegerGrid, fake_quantize
from qgait_ptq.quantizer.histogram import StreamingHistogram
from qgait_ptq.quantizer.observers import (
    ACTIVATION_OBSERVERS,
    WEIGHT_OBSERVERS,
    MinMaxObserver,
    MSEObserver,
    PercentileObserver,
    WeightMSEObserver,
)

UINT4, INT4 = IntegerGrid(4, False, False), IntegerGrid(4, True, True)


def heavy_tailed(count: int = 20000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, generator=generator).abs()
    values[:5] = 40.0
    return values


def squared_error(tensor, low, high, grid=UINT4):
    scale, zero_point = grid.parameters_for(torch.as_tensor(low), torch.as_tensor(high))
    return (fake_quantize(tensor, scale, zero_point, grid) - tensor).square().sum().item()


@pytest.mark.parametrize("name", ACTIVATION_OBSERVERS)
def test_every_observer_covers_a_uniform_tensor(name):
    observer = ACTIVATION_OBSERVERS[name](IntegerGrid(8, False, False))
    observer(torch.linspace(0, 2, 5001))
    low, high = observer.value_range()
    assert abs(float(low)) < 0.03
    assert 1.9 < float(high) <= 2.01


def test_min_max_takes_the_extremes_of_all_batches():
    observer = MinMaxObserver(UINT4)
    for batch in ([1.0, 2.0], [-3.0, 0.0], [5.0]):
        observer(torch.tensor(batch))
    assert [float(end) for end in observer.value_range()] == [-3, 5]


def test_mse_has_the_least_error_over_a_fine_search():
    tensor = heavy_tailed()
    observer = MSEObserver(UINT4)
    for batch in tensor.split(3000):
        observer(batch)
    best = min(squared_error(tensor, 0.0, high) for high in torch.linspace(1, 40, 400).tolist())
    assert squared_error(tensor, *observer.value_range()) <= 1.05 * best
    assert squared_error(tensor, 0.0, 40.0) > 2 * best


def test_percentile_cuts_the_tail():
    observer = PercentileObserver(UINT4, percentile=99.9)
    tensor = heavy_tailed()
    observer(tensor)
    high = float(observer.value_range()[1])
    assert abs(high - float(torch.quantile(tensor, 0.999))) < 0.02 * high


def test_weight_mse_never_loses_to_min_max_in_any_channel():
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) ** 3
    errors = []
    for name in ("mse", "minmax"):
        observer = WEIGHT_OBSERVERS[name](INT4, 0)
        observer(weight)
        scale, zero_point = INT4.parameters_for(*observer.value_range())
        errors.append((fake_quantize(weight, scale, zero_point, INT4, 0) - weight).square().sum(1))
    assert torch.all(errors[0] <= errors[1])
    assert errors[0].sum() < errors[1].sum()


def test_weight_mse_works_along_the_axis_it_was_given():
    weight = torch.randn(5, 7)
    observer = WeightMSEObserver(INT4, 1)
    observer(weight)
    assert observer.value_range()[1].shape == (7,)


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), min_size=1, max_size=6))
def test_histogram_does_not_depend_on_the_order_of_batches(lists):
    histograms = []
    for order in (lists, lists[::-1]):
        histogram = StreamingHistogram()
        for batch in order:
            histogram.update(torch.tensor(batch))
        histograms.append(histogram)
    first, second = histograms
    assert first.bound == second.bound
    assert first.zeros == second.zeros
    total = sum(len(batch) for batch in lists)
    assert first.counts.sum() + first.zeros == total
    # A value may fall on the border of two bins, and into either.
    assert (first.counts.cumsum(0) - second.counts.cumsum(0)).abs().max() <= 2


def test_histogram_refuses_values_that_are_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        StreamingHistogram().update(torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize("name", WEIGHT_OBSERVERS)
def test_the_few_weights_of_a_sparse_channel_keep_their_size(name):
    weight = torch.zeros(2, 1000)
    weight[0] = torch.linspace(-1, 1, 1000)
    weight[1, 7] = 0.5
    observer = WEIGHT_OBSERVERS[name](IntegerGrid(8, True, True), 0)
    observer(weight)
    assert float(observer.value_range()[1][1]) == pytest.approx(0.5, rel=0.3)
