"""Batches for end-to-end training: labelled clips, frames of the pool without labels, or both in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgait_ptq.gait.data.frame_pool import FramePool
from qgait_ptq.graph.network_input import as_network_input
from qgait_ptq.stages.training_data import BatchSampler, Clips


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        clips: network input ``[n, s, h, w]`` in [0, 1], or other values as float32, on the CPU.
        labels: identity of each clip, ``[n]``; None for clips without labels.
        embeddings: embeddings by the float network; None if they are not known beforehand.
    """

    clips: Tensor
    labels: Tensor | None = None
    embeddings: Tensor | None = None


class BatchSource(Protocol):
    """Draws training batches. Equal generators and steps give equal batches."""

    def draw(self, rng: np.random.Generator, step: int) -> Batch:
        """Draw the batch of a step."""
        ...


@dataclass(frozen=True)
class LabelledBatches:
    """Batches of labelled clips, such as P identities with K clips each.

    Attributes:
        clips: clips to draw from.
        sampler: draws the indices of a batch.
        frames: frames of each clip of a batch, at most those of `clips`.
        consecutive: whether frames follow each other, for networks that look at neighbouring frames.
        embeddings: embeddings of `clips` by the float network; None if they are not known. Only batches of
            whole clips have them.
    """

    clips: Clips
    sampler: BatchSampler
    frames: int
    consecutive: bool
    embeddings: Tensor | None = None

    def draw(self, rng: np.random.Generator, step: int) -> Batch:
        """Draw a batch with labels."""
        indices = self.sampler.draw(rng)
        labels, clips = self.clips.labels[indices], self.clips.silhouettes[indices]
        length = clips.shape[1]
        if self.frames == length:
            known = None if self.embeddings is None else self.embeddings[indices]
            return Batch(as_network_input(clips), labels, known)
        if self.consecutive:
            first = int(rng.integers(length - self.frames + 1))
            return Batch(as_network_input(clips[:, first : first + self.frames]), labels)
        frames = np.sort(rng.permuted(np.tile(np.arange(length), (len(clips), 1)), axis=1)[:, : self.frames])
        rows = torch.arange(len(clips))[:, None]
        return Batch(as_network_input(clips[rows, torch.from_numpy(frames)]), labels)


@dataclass(frozen=True)
class PoolBatches:
    """Batches of short clips without labels.

    Attributes:
        pool: frames to draw from.
        clips: number of clips of a batch.
        frames: frames of each clip.
        consecutive: whether frames follow each other, for networks that look at neighbouring frames.
    """

    pool: FramePool
    clips: int
    frames: int
    consecutive: bool

    def draw(self, rng: np.random.Generator, step: int) -> Batch:
        """Draw a batch without labels."""
        drawn = self.pool.draw(rng, self.clips, self.frames, consecutive=self.consecutive)
        return Batch(as_network_input(torch.from_numpy(drawn)))


@dataclass(frozen=True)
class MixedBatches:
    """Labelled batches at regular steps, and batches without labels at all others.

    Attributes:
        labelled: source of the labelled batches.
        unlabelled: source of the others.
        every: one step of this number takes a labelled batch.
    """

    labelled: BatchSource
    unlabelled: BatchSource
    every: int

    def draw(self, rng: np.random.Generator, step: int) -> Batch:
        """Draw the batch of a step."""
        source = self.labelled if step % self.every == self.every - 1 else self.unlabelled
        return source.draw(rng, step)


@dataclass(frozen=True)
class SequenceBatches(Sequence[Tensor]):
    """Batches of consecutive frames in which each sequence of a pool is once, in order; read when needed.

    Attributes:
        pool: frames to draw from.
        clips: number of clips of a batch; the last batch can have fewer.
        frames: frames of each clip.
        device: device of the batches.
        complete: whether all batches have the same number of clips; a few sequences are left out then.
    """

    pool: FramePool
    clips: int
    frames: int
    device: torch.device
    complete: bool = False

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.pool) // self.clips if self.complete else -(-len(self.pool) // self.clips)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        """Return a batch ``[n, s, h, w]``."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng([len(self.pool), index])
        drawn = self.pool.clips_of(self._sequences(index), rng, self.frames, consecutive=True)
        return as_network_input(torch.from_numpy(drawn).to(self.device))

    def labels(self, index: int) -> Tensor:
        """Return the labels of the sequences of a batch, ``[n]``."""
        return torch.from_numpy(self.pool.labels[self._sequences(index)]).to(self.device)

    def _sequences(self, index: int) -> NDArray[np.int64]:
        return np.arange(index * self.clips, min((index + 1) * self.clips, len(self.pool)))
