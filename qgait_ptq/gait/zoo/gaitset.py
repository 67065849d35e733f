"""GaitSet: frames as a set, a second branch over the pooled set, pyramid pooling.

After Chao et al., *GaitSet: Regarding Gait as a Set for Cross-View Gait Recognition*, AAAI 2019; written for
this project.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qgait_ptq.gait.zoo.layers import HorizontalPooling, PartBatchNorm, PartLinear, max_over_frames


def _convolutions(in_channels: int, out_channels: int, first_kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, first_kernel, padding=first_kernel // 2, bias=False),
        nn.LeakyReLU(0.01),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.LeakyReLU(0.01),
    )


class GaitSet(nn.Module):
    """GaitSet for silhouettes. The defaults are the paper's network for CASIA-B: 2.6 M parameters.

    Example:
        >>> import torch
        >>> network = GaitSet(channels=(4, 8, 8), embedding=32).eval()
        >>> network(torch.zeros(2, 5, 64, 44)).shape
        torch.Size([2, 32, 62])
    """

    def __init__(
        self,
        channels: tuple[int, int, int] = (32, 64, 128),
        strips: tuple[int, ...] = (1, 2, 4, 8, 16),
        embedding: int = 256,
        neck: bool = False,
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.frame1 = _convolutions(1, first, first_kernel=5)
        self.frame2 = _convolutions(first, second)
        self.frame3 = _convolutions(second, third)
        self.set1 = _convolutions(first, second)
        self.set2 = _convolutions(second, third)
        self.frame_pool1, self.frame_pool2, self.set_pool = (nn.MaxPool2d(2) for _ in range(3))
        self.pooling = HorizontalPooling(strips)
        self.part_linear = PartLinear(2 * sum(strips), third, embedding)
        self.neck = PartBatchNorm(2 * sum(strips), embedding) if neck else nn.Identity()

    def features(self, silhouettes: Tensor) -> Tensor:
        """Map ``[n, s, h, w]`` in [0, 1] to the embedding before the neck, ``[n, c, p]``."""
        sequences = silhouettes.shape[0]
        frames = silhouettes.flatten(0, 1).unsqueeze(1)
        frames = self.frame_pool1(self.frame1(frames))
        pooled = self.set_pool(self.set1(max_over_frames(frames, sequences)))
        frames = self.frame_pool2(self.frame2(frames))
        pooled = self.set2(pooled + max_over_frames(frames, sequences))
        maximum = max_over_frames(self.frame3(frames), sequences)
        parts = torch.cat([self.pooling(maximum), self.pooling(pooled + maximum)], dim=2)
        embedding: Tensor = self.part_linear(parts)
        return embedding

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Map ``[n, s, h, w]`` in [0, 1] to the embedding ``[n, c, p]``."""
        embedding: Tensor = self.neck(self.features(silhouettes))
        return embedding


def gaitset_small() -> GaitSet:
    """Return GaitSet with a quarter of the paper's channels, for experiments on a CPU."""
    return GaitSet(channels=(8, 16, 32), embedding=64, neck=True)
