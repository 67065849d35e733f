"""DeepGaitV2: a residual network whose later stages have separate temporal kernels (P3D).

After Fan et al., *Exploring Deep Models for Practical Gait Recognition*, arXiv 2303.03301; written for this
project. Frames are ordered. The embedding is the output of the neck (``use_emb2`` in OpenGait).
"""

from __future__ import annotations

from torch import Tensor, nn

from qgait_ptq.gait.zoo.layers import HorizontalPooling, PartBatchNorm, PartLinear, ResidualBlock


class Pseudo3dBlock(nn.Module):
    """A residual block with a residual temporal 3×1×1 convolution between its spatial convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _spatial(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm3d(out_channels)
        self.temporal = nn.Conv3d(out_channels, out_channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn_temporal = nn.BatchNorm3d(out_channels)
        self.conv2 = _spatial(out_channels, out_channels, 3, 1)
        self.bn2 = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                _spatial(in_channels, out_channels, 1, stride), nn.BatchNorm3d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, c, s, h, w]`` to ``[n, c', s, h', w']``."""
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = self.relu(inner + self.bn_temporal(self.temporal(inner)))
        return self.relu(self.bn2(self.conv2(inner)) + self.shortcut(features))


def _spatial(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(
        in_channels,
        out_channels,
        (1, kernel, kernel),
        (1, stride, stride),
        (0, kernel // 2, kernel // 2),
        bias=False,
    )


class DeepGaitV2P3D(nn.Module):
    """DeepGaitV2 in its P3D form. The defaults are the paper's network.

    Example:
        >>> import torch
        >>> network = DeepGaitV2P3D(channels=(4, 8, 8, 16), blocks=(1, 1, 1, 1), embedding=16).eval()
        >>> network(torch.zeros(2, 5, 64, 44)).shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int] = (64, 128, 256, 512),
        blocks: tuple[int, int, int, int] = (1, 4, 4, 1),
        strides: tuple[int, int, int, int] = (1, 2, 2, 1),
        parts: int = 16,
        embedding: int = 256,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels[0], 3, 1, 1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)
        )
        self.frames = nn.Sequential(*(ResidualBlock(channels[0], channels[0]) for _ in range(blocks[0])))
        stages: list[nn.Module] = []
        before = channels[0]
        for after, count, stride in zip(channels[1:], blocks[1:], strides[1:], strict=True):
            stages += [Pseudo3dBlock(before, after, stride)]
            stages += [Pseudo3dBlock(after, after) for _ in range(count - 1)]
            before = after
        self.clips = nn.Sequential(*stages)
        self.pooling = HorizontalPooling((parts,))
        self.part_linear = PartLinear(parts, channels[-1], embedding)
        self.neck = PartBatchNorm(parts, embedding)

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Map ``[n, s, h, w]`` in [0, 1] to the embedding ``[n, c, p]``."""
        maps = self.frames(self.stem(silhouettes.flatten(0, 1).unsqueeze(1)))
        clips = maps.unflatten(0, (silhouettes.shape[0], -1)).transpose(1, 2)
        pooled = self.pooling(self.clips(clips).amax(2))
        embedding: Tensor = self.neck(self.part_linear(pooled))
        return embedding
