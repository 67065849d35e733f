"""The time of a frame is measured at the frame count that a network takes."""

import itertools

import pytest
import torch
from torch import nn

from qgait_ptq.config.schema import IdcConfig, QuantConfig
from qgait_ptq.pipeline import expectation
from qgait_ptq.placement.planning import plan
from qgait_ptq.targets.registry import get_target


class Fixed(nn.Module):
    """Convolutions in each of 300 frames."""

    def __init__(self, frames):
        super().__init__()
        self.frames, self.conv, self.fc = frames, nn.Conv2d(1, 16, 5, 2), nn.Linear(16, 8)

    def forward(self, silhouettes):
        maps = self.conv(silhouettes.reshape(-1, 1, 64, 44)).relu().amax((2, 3))
        return self.fc(maps.reshape(-1, self.frames, 16).amax(1))


def test_the_estimated_time_is_that_of_the_frames_that_were_run(monkeypatch):
    """For 300 frames, it was ten times as long."""
    config = QuantConfig(idc=IdcConfig(enabled=False))
    seconds = []
    for frames in (30, 300):
        captured, graph, layers = plan(Fixed(frames).eval(), (64, 44), config, frames=frames)
        assert captured.frames == frames
        clock = itertools.count(step=frames / 10)  # a run takes a tenth of a second for each frame
        monkeypatch.setattr(expectation.time, "perf_counter", lambda clock=clock: next(clock))
        target = get_target("onnxruntime")
        expected = expectation.expect(
            config, captured, graph, layers, target, (100, 100), torch.device("cpu")
        )
        seconds.append(expected.seconds["ranges"])
        monkeypatch.undo()
    assert seconds[0] == pytest.approx(seconds[1])
