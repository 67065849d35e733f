"""A small network whose parts tests run in regions, and a quick way to quantize it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import qgait_ptq as qg
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.system.progress import Silent


class Small(nn.Module):
    """A convolution with a batch norm on each frame, a maximum over frames, a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 8, 5, 4, 2), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 16)
        self.register_buffer("factor", torch.tensor(3.0))

    def features(self, silhouettes):
        maps = self.norm(self.conv(silhouettes.flatten(0, 1).unsqueeze(1))).relu().mean((2, 3))
        return maps.unflatten(0, (silhouettes.shape[0], -1)).amax(1)

    def forward(self, silhouettes):
        return self.fc(self.features(silhouettes))


class Listener(Silent):
    """Collects the lines that a user reads."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def quantize(network):
    """Quantize with random silhouettes of 32×22 of four people; return the result and the notes."""
    rng = np.random.default_rng(0)
    walks = [rng.random((9 + i % 3, 32, 22)) < 0.1 + 0.1 * (i // 2) for i in range(8)]
    data = [(walk.astype(np.uint8) * 255, f"person {i // 2}") for i, walk in enumerate(walks)]
    config, listener = qg.QuantConfig(idc=IdcConfig(enabled=False), rounding="nearest"), Listener()
    return qg.quantize(network, data, config, device="cpu", progress=listener), listener.notes
