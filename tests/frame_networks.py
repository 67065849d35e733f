"""A small network with an operator over frames that tests choose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class OverFrames(nn.Module):
    """A convolution of each frame, an operator from ``[n, 8, s]`` to ``[n, 8]``, and a linear layer."""

    def __init__(self, over_frames: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.over_frames = over_frames
        self.conv, self.fc = nn.Conv2d(1, 8, 5, 4, 2), nn.Linear(8, 16)
        self.eval()

    def forward(self, silhouettes: Tensor) -> Tensor:
        n, s = silhouettes.shape[:2]
        features = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu().mean((2, 3))
        return self.fc(self.over_frames(features.view(n, s, 8).transpose(1, 2)))
