"""The time of a frame is measured at the frame count that a network takes."""

import torch
from torch import nn

from qgait_ptq.config.schema import IdcConfig, QuantConfig
from qgait_ptq.pipeline.expectation import expect
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


def test_the_estimated_time_of_a_frame_does_not_depend_on_the_frame_count():
    """For 300 frames, it was ten times as long."""
    config = QuantConfig(idc=IdcConfig(enabled=False))
    seconds = []
    for frames in (30, 300):
        captured, graph, layers = plan(Fixed(frames).eval(), (64, 44), config, frames=frames)
        assert captured.frames == frames
        cpu = torch.device("cpu")
        estimates = [
            expect(config, captured, graph, layers, get_target("onnxruntime"), (100, 100), cpu)
            for _ in range(3)
        ]
        seconds.append(min(estimate.seconds["ranges"] for estimate in estimates))
    assert seconds[1] < 4 * seconds[0]
