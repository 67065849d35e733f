"""What networks are given: values as they take them, and examples."""

from __future__ import annotations

import torch
from torch import Tensor


def as_network_input(frames: Tensor) -> Tensor:
    """Stored frames as float32: uint8, 0..255, in [0, 1]; other values as they are."""
    values = frames.to(torch.float32)
    return values / 255 if frames.dtype == torch.uint8 else values


def random_silhouettes(batch: int, frames: int, frame_shape: tuple[int, ...]) -> Tensor:
    """Random binary silhouettes; the same sizes give the same values."""
    generator = torch.Generator().manual_seed(batch * 1000 + frames)
    return (torch.rand(batch, frames, *frame_shape, generator=generator) < 0.3).float()
