"""GaitBase: a residual network for each frame, a maximum over time, and one embedding for each part.

After Fan et al., *OpenGait: Revisiting Gait Recognition Toward Better Practicality*, CVPR 2023; written for
this project.
"""

from __future__ import annotations

from torch import Tensor, nn

from qgait_ptq.gait.zoo.layers import (
    HorizontalPooling,
    PartBatchNorm,
    PartLinear,
    ResidualBlock,
    max_over_frames,
)


class GaitBase(nn.Module):
    """GaitBase for silhouettes.

    The defaults are the paper's network: 7 M parameters, 1.2 GMAC per frame at 64×44. With `neck`, the
    embedding is taken after the batch norm (BNNeck), otherwise before it, as OpenGait does.

    Example:
        >>> import torch
        >>> network = GaitBase(channels=(8, 8, 8, 8), embedding=32).eval()
        >>> network(torch.zeros(2, 5, 64, 44)).shape
        torch.Size([2, 32, 16])
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int] = (64, 128, 256, 512),
        strides: tuple[int, int, int, int] = (1, 2, 2, 1),
        stem_kernel: int = 3,
        stem_stride: int = 1,
        parts: int = 16,
        embedding: int = 256,
        neck: bool = True,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels[0], stem_kernel, stem_stride, stem_kernel // 2, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
        )
        inputs = (channels[0], *channels[:-1])
        self.blocks = nn.Sequential(
            *(ResidualBlock(i, o, s) for i, o, s in zip(inputs, channels, strides, strict=True))
        )
        self.pooling = HorizontalPooling((parts,))
        self.part_linear = PartLinear(parts, channels[-1], embedding)
        self.neck = PartBatchNorm(parts, embedding) if neck else nn.Identity()

    def features(self, silhouettes: Tensor) -> Tensor:
        """Map ``[n, s, h, w]`` in [0, 1] to the embedding before the neck, ``[n, c, p]``."""
        frames = silhouettes.flatten(0, 1).unsqueeze(1)
        maps = max_over_frames(self.blocks(self.stem(frames)), silhouettes.shape[0])
        embedding: Tensor = self.part_linear(self.pooling(maps))
        return embedding

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Map ``[n, s, h, w]`` in [0, 1] to the embedding ``[n, c, p]``."""
        embedding: Tensor = self.neck(self.features(silhouettes))
        return embedding


def gaitbase_small(parts: int = 16, embedding: int = 128) -> GaitBase:
    """Return the shipped example network: a quarter of the channels, and a stem of stride 2 for CPU speed."""
    return GaitBase(
        channels=(16, 32, 64, 128),
        strides=(1, 2, 1, 1),
        stem_kernel=5,
        stem_stride=2,
        parts=parts,
        embedding=embedding,
    )
