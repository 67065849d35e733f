"""Labelled clips of one length for training, and held-out clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qgait_ptq.graph.network_input import as_network_input


class BatchSampler(Protocol):
    """Draws the indices of a training batch, such as P identities with K sequences each."""

    def draw(self, rng: np.random.Generator) -> list[int]:
        """Draw one batch."""
        ...


@dataclass(frozen=True)
class Clips:
    """Sequences of equal length.

    Attributes:
        silhouettes: ``[n, s, h, w]`` uint8 in 0..255, or other values as float32.
        labels: identity of each clip, ``[n]`` int64.
    """

    silhouettes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | list[int]) -> Clips:
        """Return the clips at some indices."""
        return Clips(self.silhouettes[indices], self.labels[indices])

    def batch(self, indices: Tensor | list[int], device: torch.device) -> Tensor:
        """Return the clips at some indices as network input ``[k, s, h, w]`` on a device."""
        return as_network_input(self.silhouettes[indices].to(device))

    def batches(self, size: int, device: torch.device) -> Iterator[Tensor]:
        """Yield all clips in order, in batches of `size`."""
        for indices in torch.arange(len(self)).split(size):
            yield self.batch(indices, device)


@dataclass(frozen=True)
class TrainingData:
    """Clips to train on, and clips of other people that decide which step is kept.

    Attributes:
        clips: clips to train on.
        sampler: sampler of training batches.
        held_out: clips of held-out identities.
        held_out_embeddings: float embeddings of `held_out`, ``[n, c, p]`` or ``[n, c]``.
        held_out_subjects: names of the held-out identities.
    """

    clips: Clips
    sampler: BatchSampler
    held_out: Clips
    held_out_embeddings: Tensor
    held_out_subjects: frozenset[str] = frozenset()
