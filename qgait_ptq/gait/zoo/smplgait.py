"""SMPLGait: silhouettes, and a body model of each frame that transforms their features.

After Zheng et al., *Gait Recognition in the Wild with Dense 3D Representations and A Benchmark*, CVPR 2022;
written for this project.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from qgait_ptq.gait.zoo.layers import HorizontalPooling, PartLinear, max_over_frames

BODY_NUMBERS = 85  # values of SMPL: 10 of the shape, 72 of the pose, 3 of the camera


class BodyTransform(nn.Module):
    """Maps the values of a body model to a matrix near the identity."""

    def __init__(self, side: int, hidden: tuple[int, int] = (128, 256)) -> None:
        super().__init__()
        sizes = (BODY_NUMBERS, *hidden, side * side)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:])
        self.dropout, self.side = nn.Dropout(0.2), side

    def forward(self, bodies: Tensor) -> Tensor:
        """Map ``[m, 85]`` to ``[m, side, side]``."""
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            values = layer(bodies)
            bodies = functional.relu(norm(self.dropout(values) if number else values))
        return bodies.unflatten(1, (self.side, self.side)) + torch.eye(self.side, device=bodies.device)


class SmplGait(nn.Module):
    """SMPLGait. The defaults are the paper's network for Gait3D: 3.3 M parameters.

    Example:
        >>> import torch
        >>> network = SmplGait(channels=(4, 8, 8), embedding=16).eval()
        >>> network(torch.zeros(2, 5, 64, 44), torch.zeros(2, 5, 85)).shape
        torch.Size([2, 16, 31])
    """

    def __init__(
        self,
        channels: tuple[int, int, int] = (64, 128, 256),
        strips: tuple[int, ...] = (16, 8, 4, 2, 1),
        embedding: int = 256,
        height: int = 64,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before = 1
        for number, after in enumerate(channels):
            blocks += [nn.MaxPool2d(2)] if number else []
            for into in (before, after):
                kernel = 3 if blocks else 5
                blocks += [
                    nn.Conv2d(into, after, kernel, padding=kernel // 2, bias=False),
                    nn.LeakyReLU(0.01),
                ]
            before = after
        self.frames = nn.Sequential(*blocks)
        self.side = height // 4
        self.body = BodyTransform(self.side)
        self.pooling = HorizontalPooling(strips)
        self.part_linear = PartLinear(sum(strips), channels[-1], embedding)

    def forward(self, silhouettes: Tensor, bodies: Tensor) -> Tensor:
        """Map silhouettes ``[n, s, h, w]`` in [0, 1] and bodies ``[n, s, 85]`` to ``[n, c, p]``."""
        sequences = silhouettes.shape[0]
        features = self.frames(silhouettes.flatten(0, 1).unsqueeze(1))
        square = functional.pad(features, (0, self.side - features.shape[-1]))
        turned = square @ self.body(bodies.flatten(0, 1)).unsqueeze(1)
        embedding: Tensor = self.part_linear(self.pooling(max_over_frames(turned, sequences)))
        return embedding
