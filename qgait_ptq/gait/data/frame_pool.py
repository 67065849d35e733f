"""Frames of many sequences, of which training draws short clips."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sequences import shape_text
from qgait_ptq.system.invariants import present

MEGABYTE = 2**20
UNKNOWN = -1  # label of a sequence without a known identity


@dataclass(frozen=True)
class FramePool:
    """Frames of many sequences, one sequence after the other.

    Attributes:
        frames: all frames, ``[f, h, w]`` uint8 in 0..255, or other values as float32; in memory, or a mapped
            file that disappears with the pool.
        stretches: position of the first frame of each sequence in `frames`, and its number of frames,
            ``[n, 2]`` int64.
        labels: number of the identity of each sequence, ``[n]`` int64; `UNKNOWN` without one.
    """

    frames: NDArray[Any]
    stretches: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.stretches)

    def take(self, sequences: NDArray[np.int64]) -> FramePool:
        """Return the pool of some sequences, with the same frames behind it."""
        return FramePool(self.frames, self.stretches[sequences], self.labels[sequences])

    def has_frames(self, frames: int) -> NDArray[np.bool_]:
        """Return for each sequence whether it has some number of frames, ``[n]``; true if none has."""
        enough: NDArray[np.bool_] = self.stretches[:, 1] >= frames
        return enough if enough.any() else np.ones_like(enough)

    @property
    def on_disk(self) -> bool:
        """Return whether the frames are in a mapped file."""
        return isinstance(self.frames, np.memmap)

    def draw(self, rng: np.random.Generator, clips: int, frames: int, *, consecutive: bool) -> NDArray[Any]:
        """Draw a batch of clips, each from another sequence as far as there are enough.

        Args:
            rng: generator of random numbers.
            clips: number of clips.
            frames: frames of each clip. A shorter sequence repeats frames, in a circle if they are
                consecutive.
            consecutive: whether frames follow each other; otherwise they are drawn at random, in their
                order.

        Returns:
            Clips ``[n, s, h, w]`` of the type of the pool.
        """
        chosen = rng.choice(len(self), clips, replace=clips > len(self))
        return self.clips_of(chosen, rng, frames, consecutive=consecutive)

    def clips_of(
        self, chosen: NDArray[np.int64], rng: np.random.Generator, frames: int, *, consecutive: bool
    ) -> NDArray[Any]:
        """Return a clip of each chosen sequence, in their order; see `draw`."""
        return np.stack([self.frames[self._positions(rng, int(i), frames, consecutive)] for i in chosen])

    def _positions(
        self, rng: np.random.Generator, sequence: int, frames: int, consecutive: bool
    ) -> NDArray[np.int64]:
        start, length = map(int, self.stretches[sequence])
        if consecutive:
            first = int(rng.integers(max(1, length - frames + 1)))
            return start + first + np.arange(frames) % length
        return start + np.sort(rng.choice(length, frames, replace=length < frames))


def collect_frames(
    data: GaitDataset,
    labels: NDArray[np.int64],
    longest: int,
    frame_shape: tuple[int, ...],
    memory_mb: float,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> FramePool:
    """Read each sequence once, and keep a stretch of consecutive frames at a random place.

    Args:
        data: the sequences.
        labels: number of the identity of each sequence, ``[n]``; `UNKNOWN` without one.
        longest: largest number of frames of a stretch.
        frame_shape: shape of the frames that the network takes.
        memory_mb: limit in MB of frames in memory. A larger pool is written to a temporary file, which the
            operating system removes with the process.
        seed: random seed of the places.
        advance: called after each sequence.

    Raises:
        DataError: there is no sequence, or a sequence has another frame size.
    """
    if not len(data):
        raise DataError("there is no sequence to fine-tune on")
    rng = np.random.default_rng(seed)
    frames: NDArray[Any] | None = None
    stretches: list[tuple[int, int]] = []
    end = 0
    for sequence, record in data:
        if sequence.shape[1:] != frame_shape:
            raise DataError(
                f"{record.name}: silhouettes of {shape_text(sequence.shape[1:])}, but the network takes "
                f"{shape_text(frame_shape)}; resize them"
            )
        if frames is None:
            frames = _reserve((len(data) * longest, *frame_shape), sequence.dtype, memory_mb)
        first = int(rng.integers(max(1, len(sequence) - longest + 1)))
        stretch = sequence[first : first + longest]
        frames[end : end + len(stretch)] = stretch
        stretches.append((end, len(stretch)))
        end += len(stretch)
        advance()
    return FramePool(present(frames), np.array(stretches), labels)


def _reserve(shape: tuple[int, ...], dtype: np.dtype[Any], memory_mb: float) -> NDArray[Any]:
    """Return an array in memory, or in a temporary file without a name if it is larger than the limit."""
    if int(np.prod(shape)) * dtype.itemsize <= memory_mb * MEGABYTE:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="qgait-frames-") as file:  # the mapping keeps it after closing
        return np.memmap(file, dtype, "w+", shape=shape)
