"""Multiply-accumulates at the measured frame count: some run once in a sequence, not in each frame."""

import pytest
from torch import nn

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.evaluation.macs import macs_of_sequence
from qgait_ptq.graph.shapes import record_shapes
from qgait_ptq.placement.macs_by_frames import count_macs_by_frames
from qgait_ptq.placement.planning import plan
from qgait_ptq.placement.totals import count_totals
from tests.conftest import make_gaitgl

FRAME = (32, 22)


class PerFrame(nn.Module):
    """A convolution in each frame, ``[n, s, 4]``."""

    def __init__(self):
        super().__init__()
        self.frames = nn.Conv2d(1, 4, 5, 4)

    def features(self, silhouettes):
        n, s, h, w = silhouettes.shape
        return self.frames(silhouettes.reshape(n * s, 1, h, w)).relu().mean((2, 3)).reshape(n, s, 4)


class LargeHead(PerFrame):
    """Most products run once in each sequence."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4096)

    def forward(self, silhouettes):
        return self.head(self.features(silhouettes).amax(1))


class Attention(PerFrame):
    """Products for each pair of frames."""

    def forward(self, silhouettes):
        values = self.features(silhouettes)
        return ((values @ values.transpose(1, 2)).softmax(2) @ values).amax(1)


@pytest.mark.parametrize("make", [LargeHead, Attention, pytest.param(make_gaitgl, marks=pytest.mark.slow)])
def test_macs_are_those_of_the_measured_frame_count(make):
    frame = (64, 44) if make is make_gaitgl else FRAME
    captured, graph, _ = plan(make().eval(), frame, QuantConfig())
    reported = count_totals(graph).macs
    described = {"macs": reported, "macs_frames": 30, "macs_by_frames": count_macs_by_frames(captured, graph)}
    assert count_totals(graph).macs == reported  # shapes of the graph stay as they were
    assert macs_of_sequence(described, 30) == reported
    for frames in (3, 36, 48, 300):
        record_shapes(graph, captured.example(sequences=1, length=frames))
        assert macs_of_sequence(described, frames) == count_totals(graph).macs


def test_macs_of_a_network_for_one_frame_count_are_known_for_this_one():
    captured, graph, _ = plan(LargeHead().eval(), FRAME, QuantConfig(), frames=9)
    assert count_macs_by_frames(captured, graph) == {}
    assert macs_of_sequence({"macs": 50, "macs_frames": 9, "macs_by_frames": {}}, 9) == 50


@pytest.mark.parametrize("described", [{}, {"macs": 50, "macs_frames": 30}])
def test_macs_that_a_file_does_not_record_are_unknown(described):
    """Files of older versions know them for one frame count."""
    assert macs_of_sequence(described, 120) is None


def test_the_reported_count_is_one_of_the_points():
    """A network for 1 to 32 frames takes two of the counted numbers of frames only."""
    described = {"macs": 900, "macs_frames": 30, "macs_by_frames": {"12": 144, "24": 576}}
    assert macs_of_sequence(described, 6) == 36
    assert macs_of_sequence({**described, "macs_frames": 24, "macs": 576}, 6) is None
