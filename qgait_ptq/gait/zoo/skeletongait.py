"""SkeletonGait++: silhouettes and skeleton maps in two branches, fused by attention.

After Fan et al., *SkeletonGait: Gait Recognition Using Skeleton Maps*, AAAI 2024; written for this project,
with residual stages over single frames, and with the fusion behind the second stage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qgait_ptq.gait.zoo.layers import (
    HorizontalPooling,
    PartBatchNorm,
    PartLinear,
    ResidualBlock,
    max_over_frames,
)


class AttentionFusion(nn.Module):
    """A weighted sum of two maps. The weights of each position and channel depend on both maps."""

    def __init__(self, channels: int, squeeze: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // squeeze)
        self.attention = nn.Sequential(
            nn.Conv2d(2 * channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 2 * channels, 1),
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map two maps ``[n, c, h, w]`` to one."""
        scores = self.attention(torch.cat([first, second], 1)).unflatten(1, (2, -1)).softmax(1)
        return first * scores[:, 0] + second * scores[:, 1]


class SkeletonGaitPlus(nn.Module):
    """SkeletonGait++ for one silhouette and two skeleton maps (joints, limbs) per frame.

    Example:
        >>> import torch
        >>> network = SkeletonGaitPlus(channels=(4, 8, 8, 16), embedding=16).eval()
        >>> network(torch.zeros(2, 5, 3, 64, 44)).shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int] = (64, 128, 256, 512),
        maps: int = 2,
        parts: int = 16,
        embedding: int = 256,
    ) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.silhouettes = self._branch(1, first, second)
        self.maps = self._branch(maps, first, second)
        self.fusion = AttentionFusion(second)
        self.stages = nn.Sequential(ResidualBlock(second, third, 2), ResidualBlock(third, fourth))
        self.pooling = HorizontalPooling((parts,))
        self.part_linear = PartLinear(parts, fourth, embedding)
        self.neck = PartBatchNorm(parts, embedding)

    @staticmethod
    def _branch(inputs: int, first: int, second: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, first, 3, 1, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            ResidualBlock(first, first),
            ResidualBlock(first, second, 2),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Map ``[n, s, 1 + maps, h, w]`` in [0, 1], the silhouette first, to the embedding ``[n, c, p]``."""
        flat = frames.flatten(0, 1)
        fused = self.fusion(self.silhouettes(flat[:, :1]), self.maps(flat[:, 1:]))
        pooled = self.pooling(max_over_frames(self.stages(fused), frames.shape[0]))
        embedding: Tensor = self.neck(self.part_linear(pooled))
        return embedding
