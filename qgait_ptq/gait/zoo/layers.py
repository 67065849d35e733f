"""Layers that the gait networks share: residual block, strip pooling, per-part linear and batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, c, h, w]`` to ``[n, c', h', w']``."""
        inner = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(inner)) + self.shortcut(features))


class HorizontalPooling(nn.Module):
    """Mean plus maximum over horizontal strips at several scales (GaitSet's horizontal pyramid pooling)."""

    def __init__(self, strips: tuple[int, ...]) -> None:
        super().__init__()
        self.strips = strips

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, c, h, w]`` to ``[n, c, p]``, p the sum of the strips; h·w must be a multiple of each."""
        flat = features.flatten(2)
        pooled = []
        for count in self.strips:
            strips = flat.unflatten(2, (count, -1))
            pooled.append(strips.mean(-1) + strips.amax(-1))
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=2)


class PartLinear(nn.Module):
    """One fully connected layer for each part (OpenGait's SeparateFCs)."""

    def __init__(self, parts: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(parts, in_channels, out_channels)))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, c, p]`` to ``[n, c', p]``."""
        return torch.matmul(features.permute(2, 0, 1), self.weight).permute(1, 2, 0)


class PartBatchNorm(nn.Module):
    """Batch norm of each channel of each part (BNNeck, Luo et al. 2019, per part)."""

    def __init__(self, parts: int, channels: int) -> None:
        super().__init__()
        self.bn1d = nn.BatchNorm1d(channels * parts)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map ``[n, c, p]`` to ``[n, c, p]``."""
        count, channels, parts = embeddings.shape
        return self.bn1d(embeddings.reshape(count, channels * parts)).reshape(count, channels, parts)


def max_over_frames(features: Tensor, sequences: int) -> Tensor:
    """Map ``[n·s, c, h, w]`` to ``[n, c, h, w]`` by the maximum over frames (set pooling)."""
    return features.unflatten(0, (sequences, -1)).amax(1)
