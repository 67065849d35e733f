"""The histogram of a stream of tensors."""

import torch

from qgait_ptq.quantizer.histogram import HALF_BINS, StreamingHistogram


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
