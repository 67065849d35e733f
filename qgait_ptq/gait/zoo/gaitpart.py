"""GaitPart: convolutions within parts, and one temporal module for each part.

After Fan et al., *GaitPart: Temporal Part-based Model for Gait Recognition*, CVPR 2020; written for this
project. Frames are ordered.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgait_ptq.gait.zoo.layers import HorizontalPooling, PartLinear
from qgait_ptq.system.invariants import present


class FocalConvolution(nn.Module):
    """One convolution that is applied to each of 2^k horizontal strips separately (FConv)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, halvings: int) -> None:
        super().__init__()
        self.strips = 2**halvings
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, c, h, w]`` to ``[n, c', h, w]``."""
        if self.strips == 1:
            result: Tensor = self.conv(features)
            return result
        strips = features.split(features.shape[2] // self.strips, dim=2)
        return torch.cat([self.conv(strip) for strip in strips], dim=2)


class MicroMotion(nn.Module):
    """Micro-motion capture of one part: windows of three and five frames, weighted by attention (MCM)."""

    def __init__(self, channels: int, squeeze: int = 4) -> None:
        super().__init__()
        hidden = channels // squeeze
        self.windows = (3, 5)
        self.reduce = nn.ModuleList(
            nn.Conv1d(channels, hidden, 3, padding=1, bias=False) for _ in self.windows
        )
        self.expand = nn.ModuleList(
            nn.Conv1d(hidden, channels, kernel, padding=kernel // 2, bias=False) for kernel in (1, 3)
        )

    def forward(self, part: Tensor) -> Tensor:
        """Map ``[n, c, s]`` to ``[n, c]``."""
        total: Tensor | None = None
        for window, reduce, expand in zip(self.windows, self.reduce, self.expand, strict=True):
            pooled = F.avg_pool1d(part, window, 1, window // 2) + F.max_pool1d(part, window, 1, window // 2)
            gated = pooled * torch.sigmoid(expand(F.leaky_relu(reduce(part))))
            total = gated if total is None else total + gated
        total = present(total)
        return total.amax(-1)


class GaitPart(nn.Module):
    """GaitPart for silhouettes. The defaults are the paper's network for CASIA-B: 1.2 M parameters.

    Example:
        >>> import torch
        >>> network = GaitPart(channels=(4, 8, 16), embedding=16).eval()
        >>> network(torch.zeros(2, 5, 64, 44)).shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self,
        channels: tuple[int, int, int] = (32, 64, 128),
        halvings: tuple[int, int, int] = (0, 2, 3),
        parts: int = 16,
        embedding: int = 128,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for stage, (after, halving) in enumerate(zip(channels, halvings, strict=True)):
            layers += [FocalConvolution(before, after, 3 if stage else 5, halving), nn.LeakyReLU(0.01)]
            layers += [FocalConvolution(after, after, 3, halving), nn.LeakyReLU(0.01)]
            layers += [nn.MaxPool2d(2)] if stage < 2 else []
            before = after
        self.frames = nn.Sequential(*layers)
        self.pooling = HorizontalPooling((parts,))
        self.motion = nn.ModuleList(MicroMotion(channels[-1]) for _ in range(parts))
        self.part_linear = PartLinear(parts, channels[-1], embedding)

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Map ``[n, s, h, w]`` in [0, 1] to the embedding ``[n, c, p]``."""
        maps = self.frames(silhouettes.flatten(0, 1).unsqueeze(1))
        pooled = self.pooling(maps).unflatten(0, (silhouettes.shape[0], -1))  # [n, s, c, p]
        by_part = pooled.permute(3, 0, 2, 1)
        motion = torch.stack([module(part) for module, part in zip(self.motion, by_part, strict=True)], dim=2)
        embedding: Tensor = self.part_linear(motion)
        return embedding
