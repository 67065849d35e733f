"""Inputs of networks: conversion of stored frames, and random examples."""

from __future__ import annotations

import torch
from torch import Tensor


def as_network_input(frames: Tensor) -> Tensor:
    """Convert stored frames to float32; uint8 values 0..255 are scaled to [0, 1]."""
    values = frames.to(torch.float32)
    return values / 255 if frames.dtype == torch.uint8 else values


def random_silhouettes(batch: int, frames: int, frame_shape: tuple[int, ...]) -> Tensor:
    """Return random binary silhouettes; equal sizes give equal values."""
    generator = torch.Generator().manual_seed(batch * 1000 + frames)
    return (torch.rand(batch, frames, *frame_shape, generator=generator) < 0.3).float()
