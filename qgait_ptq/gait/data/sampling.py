"""Sampling of sequences for a batch, and of frames of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.graph.network_input import as_network_input


class PKSampler:
    """Sampler of batches with P identities and K sequences of each, as in metric learning.

    An identity with fewer than K sequences repeats some of them.

    Example:
        >>> sampler = PKSampler(["anna", "anna", "ben", "ben", "carl"], identities=2, sequences=2)
        >>> len(sampler.draw(np.random.default_rng(0)))
        4
    """

    def __init__(self, labels: Sequence[str], identities: int, sequences: int) -> None:
        """Make a sampler for `labels`, the identity of each sequence.

        Raises:
            DataError: the data have fewer identities than a batch needs.
        """
        self.by_identity: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            self.by_identity.setdefault(label, []).append(index)
        if len(self.by_identity) < identities:
            raise DataError(
                f"a batch of {identities} identities needs more data; found {len(self.by_identity)}"
            )
        self.identities, self.sequences = identities, sequences

    def draw(self, rng: np.random.Generator) -> list[int]:
        """Draw one batch: P·K indices, grouped by identity."""
        names = sorted(self.by_identity)
        batch: list[int] = []
        for position in rng.choice(len(names), self.identities, replace=False):
            pool = self.by_identity[names[position]]
            batch.extend(int(i) for i in rng.choice(pool, self.sequences, len(pool) < self.sequences))
        return batch


def draw_frames(silhouettes: NDArray[np.uint8], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw `count` frames in their order. A shorter sequence repeats some."""
    available = len(silhouettes)
    indices = np.sort(rng.choice(available, count, replace=available < count))
    return silhouettes[indices]


def to_network_input(silhouettes: NDArray[Any]) -> torch.Tensor:
    """Map silhouettes ``[..., h, w]`` in 0..255 to network input, float32 in [0, 1]."""
    return as_network_input(torch.from_numpy(np.ascontiguousarray(silhouettes)))
