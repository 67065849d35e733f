"""GaitGL: parallel 3-D convolutions over complete frames and over strips of them.

After Lin et al., *Gait Recognition via Effective Global-Local Feature Representation and Local Temporal
Aggregation*, ICCV 2021; written for this project. Frames are ordered; at least three are needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgait_ptq.gait.zoo.layers import PartLinear

SMALLEST = 1e-6  # lower bound of values before the power of the generalized mean


class GlobalLocalConvolution(nn.Module):
    """A convolution of the complete map and one of its strips (GLConv).

    Args:
        in_channels: channels of the map.
        out_channels: channels of the result.
        halvings: exponent k; the map is cut into 2^k strips.
        stacked: whether both results are stacked along the height instead of added.
    """

    def __init__(self, in_channels: int, out_channels: int, halvings: int = 3, stacked: bool = False) -> None:
        super().__init__()
        self.strips, self.stacked = 2**halvings, stacked
        self.whole = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
        self.local = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, c, s, h, w]`` to ``[n, c', s, h, w]``, or twice the height."""
        strips = features.chunk(self.strips, dim=3)
        local = torch.cat([self.local(strip) for strip in strips], dim=3)
        both = F.leaky_relu(self.whole(features)), F.leaky_relu(local)
        return torch.cat(both, dim=3) if self.stacked else both[0] + both[1]


class GeneralizedMeanPooling(nn.Module):
    """Generalized mean over horizontal strips, with a learned power (GeM)."""

    def __init__(self, parts: int, power: float = 6.5) -> None:
        super().__init__()
        self.parts = parts
        self.power = nn.Parameter(torch.tensor([power]))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[n, c, h, w]`` to ``[n, c, p]``."""
        strips = features.flatten(2).unflatten(2, (self.parts, -1))
        powers = strips.clamp(min=SMALLEST).pow(self.power)
        return F.avg_pool2d(powers, (1, strips.shape[-1])).pow(1.0 / self.power).squeeze(-1)


class GaitGL(nn.Module):
    """GaitGL for silhouettes. The defaults are the paper's network for CASIA-B: 2.5 M deployed parameters.

    Example:
        >>> import torch
        >>> network = GaitGL(channels=(4, 8, 16)).eval()
        >>> network(torch.zeros(2, 7, 64, 44)).shape
        torch.Size([2, 16, 64])
    """

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 128), parts: int = 64) -> None:
        super().__init__()
        first, second, third = channels
        self.stem = nn.Conv3d(1, first, 3, padding=1, bias=False)
        self.aggregation = nn.Conv3d(first, first, (3, 1, 1), stride=(3, 1, 1), bias=False)
        self.block1 = GlobalLocalConvolution(first, second)
        self.pool = nn.MaxPool3d((1, 2, 2), (1, 2, 2))
        self.block2 = GlobalLocalConvolution(second, third)
        self.block3 = GlobalLocalConvolution(third, third, stacked=True)
        self.pooling = GeneralizedMeanPooling(parts)
        self.part_linear = PartLinear(parts, third, third)
        self.neck = nn.BatchNorm1d(third)

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Map ``[n, s, h, w]`` in [0, 1], s at least 3, to the embedding ``[n, c, p]``."""
        maps = F.leaky_relu(self.stem(silhouettes.unsqueeze(1)))
        maps = F.leaky_relu(self.aggregation(maps))
        maps = self.block3(self.block2(self.pool(self.block1(maps))))
        embedding: Tensor = self.neck(self.part_linear(self.pooling(maps.amax(2))))
        return embedding
