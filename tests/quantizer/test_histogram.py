"""The histogram of a stream of tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qgait_ptq.quantizer.histogram import HALF_BINS, StreamingHistogram


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1000))
def test_counts_do_not_depend_on_the_order_of_the_tensors(seed, ratio):
    """A bound that was small at first must not round a value into another bin."""
    values = torch.randn(20000, generator=torch.Generator().manual_seed(seed))
    tensors = [values[:9000], ratio * values[9000:]]
    orders = []
    for order in (tensors, tensors[::-1]):
        histogram = StreamingHistogram()
        for tensor in order:
            histogram.update(tensor)
        orders.append(histogram)
    merged, other = StreamingHistogram(), StreamingHistogram()
    merged.update(tensors[0])
    other.update(tensors[1])
    merged.merge(other)
    assert torch.equal(orders[0].counts, orders[1].counts)
    assert torch.equal(orders[0].counts, merged.counts)


@pytest.mark.parametrize("bound", [2.0**-140, 2.0**-120, 1.0, 2.0**120])
def test_values_on_the_borders_of_bins_are_counted_in_the_upper_one(bound):
    histogram = StreamingHistogram()
    histogram.update(torch.tensor([-bound, -bound / 2, bound / 2, bound]))
    assert histogram.bound == 2 * bound  # bins do not contain their upper end
    bins = torch.nonzero(histogram.counts)[:, 0].tolist()
    assert bins == [HALF_BINS * quarter // 4 for quarter in (2, 3, 5, 6)]


def test_a_power_of_two_is_counted_alike_before_and_after_larger_values():
    first, last, merged = (StreamingHistogram() for _ in range(3))
    for histogram, values in ((first, (1.0, 3.0)), (last, (3.0, 1.0)), (merged, (1.0,))):
        for value in values:
            histogram.update(torch.tensor([value]))
    other = StreamingHistogram()
    other.update(torch.tensor([3.0]))
    merged.merge(other)
    assert first.bound == last.bound == merged.bound == 4
    assert torch.equal(first.counts, last.counts)
    assert torch.equal(first.counts, merged.counts)


def test_many_values_in_one_bin_are_counted_exactly():
    """torch counts in float32, which cannot tell 2^24 from 2^24 + 1."""
    count = 2**24 + 3
    histogram = StreamingHistogram()
    histogram.update(torch.tensor(0.5).expand(count))
    assert histogram.counts.sum() == count
    assert histogram.zeros == 0
    histogram.update(torch.zeros(1).expand(count))
    assert histogram.zeros == count
    assert histogram.counts[HALF_BINS] == 0
