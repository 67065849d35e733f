"""SwinGait: a convolutional stem, then window attention in each frame.

After Fan et al., *Exploring Deep Models for Practical Gait Recognition*, 2023 (SwinGait), and Liu et al.,
*Swin Transformer*, ICCV 2021; written for this project, with windows in space only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qgait_ptq.gait.zoo.layers import (
    HorizontalPooling,
    PartBatchNorm,
    PartLinear,
    ResidualBlock,
    max_over_frames,
)

WINDOW = 4  # rows and columns


class WindowAttention(nn.Module):
    """Attention within windows of a map, with a learned bias for each pair of positions."""

    def __init__(self, channels: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        self.position_bias = nn.Parameter(0.02 * torch.randn(heads, WINDOW**2, WINDOW**2))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, h, w, c]`` to the same shape; h and w are multiples of the window."""
        count, height, width, channels = features.shape
        rows, columns = height // WINDOW, width // WINDOW
        if self.shift:
            features = torch.roll(features, (-self.shift, -self.shift), (1, 2))
        windows = features.reshape(count, rows, WINDOW, columns, WINDOW, channels)
        tokens = windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW**2, channels)
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * (channels // self.heads) ** -0.5 + self.position_bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, WINDOW**2, channels)
        windows = self.projection(mixed).reshape(count, rows, columns, WINDOW, WINDOW, channels)
        features = windows.permute(0, 1, 3, 2, 4, 5).reshape(count, height, width, channels)
        if self.shift:
            features = torch.roll(features, (self.shift, self.shift), (1, 2))
        return features


class SwinBlock(nn.Module):
    """Window attention and a perceptron, each after a layer norm and with a shortcut."""

    def __init__(self, channels: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, shift)
        self.perceptron = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, h, w, c]`` to the same shape."""
        features = features + self.attention(self.norm1(features))
        attended: Tensor = features + self.perceptron(self.norm2(features))
        return attended


class SwinGait(nn.Module):
    """A Swin-style gait network for silhouettes of 64×44.

    Example:
        >>> import torch
        >>> network = SwinGait(channels=(4, 8), heads=2, blocks=2, embedding=16).eval()
        >>> network(torch.zeros(2, 5, 64, 44)).shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self,
        channels: tuple[int, int] = (64, 256),
        heads: int = 8,
        blocks: int = 4,
        parts: int = 16,
        embedding: int = 256,
    ) -> None:
        super().__init__()
        first, second = channels
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, 1, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            ResidualBlock(first, first, 2),
            ResidualBlock(first, second, 2),
        )
        self.blocks = nn.Sequential(
            *(SwinBlock(second, heads, shift=WINDOW // 2 * (index % 2)) for index in range(blocks))
        )
        self.norm = nn.LayerNorm(second)
        self.pooling = HorizontalPooling((parts,))
        self.part_linear = PartLinear(parts, second, embedding)
        self.neck = PartBatchNorm(parts, embedding)

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Map ``[n, s, h, w]`` in [0, 1] to the embedding ``[n, c, p]``."""
        features = self.stem(silhouettes.flatten(0, 1).unsqueeze(1))
        features = functional.pad(features, (0, -features.shape[3] % WINDOW, 0, -features.shape[2] % WINDOW))
        attended = self.norm(self.blocks(features.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        pooled = self.pooling(max_over_frames(attended, silhouettes.shape[0]))
        embedding: Tensor = self.neck(self.part_linear(pooled))
        return embedding
