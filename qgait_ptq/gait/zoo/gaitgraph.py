"""GaitGraph: graph convolutions over the joints of poses.

After Teepe et al., *GaitGraph: Graph Convolutional Network for Skeleton-Based Gait Recognition*, ICIP 2021;
written for this project.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Bones between the 17 joints of COCO.
BONES = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16), (0, 5), (0, 6)),
)
JOINTS = 17


def neighbourhoods() -> Tensor:
    """Return weights ``[2, 17, 17]`` of each joint itself and of its neighbours. Columns sum to one."""
    bones = torch.zeros(JOINTS, JOINTS)
    for a, b in BONES:
        bones[a, b] = bones[b, a] = 1
    return torch.stack([torch.eye(JOINTS), bones / bones.sum(0)])


class GraphBlock(nn.Module):
    """A convolution over neighbouring joints, one over neighbouring frames, and a shortcut."""

    neighbours: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 9) -> None:
        super().__init__()
        self.register_buffer("neighbours", neighbourhoods())
        self.joints = nn.Conv2d(in_channels, 2 * out_channels, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels)
        self.frames = nn.Conv2d(out_channels, out_channels, (kernel, 1), padding=(kernel // 2, 0))
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels)
            )

    def forward(self, poses: Tensor) -> Tensor:
        """Map ``[n, c, s, j]`` to ``[n, c', s, j]``."""
        by_kind = self.joints(poses).unflatten(1, (2, -1))
        gathered = torch.einsum("nkcsj,kjv->ncsv", by_kind, self.neighbours)
        inner = functional.relu(self.bn1(gathered))
        return functional.relu(self.bn2(self.frames(inner)) + self.shortcut(poses))


class GaitGraph(nn.Module):
    """A graph network for poses of 17 joints, each with x, y and confidence.

    Example:
        >>> import torch
        >>> GaitGraph(channels=(4, 8), embedding=16).eval()(torch.zeros(2, 5, 17, 3)).shape
        torch.Size([2, 16])
    """

    def __init__(self, channels: tuple[int, ...] = (64, 64, 128, 256), embedding: int = 128) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3 * JOINTS)
        sizes = (3, *channels)
        self.blocks = nn.Sequential(
            *(GraphBlock(before, after) for before, after in zip(sizes, channels, strict=False))
        )
        self.linear = nn.Linear(channels[-1], embedding)

    def forward(self, poses: Tensor) -> Tensor:
        """Map ``[n, s, 17, 3]`` to the embedding ``[n, c]`` of unit length."""
        flat = self.norm(poses.flatten(2).transpose(1, 2))
        features = flat.unflatten(1, (JOINTS, 3)).permute(0, 2, 3, 1)
        pooled = self.blocks(features).mean((2, 3))
        return functional.normalize(self.linear(pooled))
