"""The labelled sequences that gradients are taken on, cut to one length."""

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
        labels: identity of each, ``[n]`` int64.
    """

    silhouettes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | list[int]) -> Clips:
        """Some of the clips."""
        return Clips(self.silhouettes[indices], self.labels[indices])

    def batch(self, indices: Tensor | list[int], device: torch.device) -> Tensor:
        """Network input ``[k, s, h, w]``."""
        return as_network_input(self.silhouettes[indices].to(device))

    def batches(self, size: int, device: torch.device) -> Iterator[Tensor]:
        """All clips in order, `size` at a time."""
        for indices in torch.arange(len(self)).split(size):
            yield self.batch(indices, device)


@dataclass(frozen=True)
class TrainingData:
    """Clips to learn from and clips to choose by, of different people.

    Attributes:
        clips: for gradients.
        embeddings: of the float network, ``[n, c, p]`` or ``[n, c]``.
        sampler: draws batches of indices.
        held_out: for choosing the step.
        held_out_embeddings: of the float network.
    """

    clips: Clips
    embeddings: Tensor
    sampler: BatchSampler
    held_out: Clips
    held_out_embeddings: Tensor
