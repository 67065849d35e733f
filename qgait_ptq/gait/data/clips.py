"""Calibration sequences as clips of one length, for training."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord, Silhouettes
from qgait_ptq.gait.data.sequences import shape_text
from qgait_ptq.graph.frame_counts import ANY_FRAME_COUNT, FrameCounts

SMALLEST_IDENTITIES, SMALLEST_SEQUENCES = 8, 2  # minimum for IDC: identities, and sequences of each
FAR_SHORTER = 0.5  # of the median length: sequences below it make no clips


@dataclass(frozen=True)
class LabelledClips:
    """Clips of sequences, with their identities.

    Attributes:
        silhouettes: clips ``[n, s, h, w]`` uint8.
        subjects: subject of each clip.
        copies: number of sequences that were left out because they repeat another one.
        short: number of sequences that were left out because they are far shorter than the others.
    """

    silhouettes: torch.Tensor
    subjects: list[str]
    copies: int
    short: int = 0

    @property
    def labels(self) -> torch.Tensor:
        """Return identities as numbers, ``[n]`` int64."""
        numbers = {subject: number for number, subject in enumerate(sorted(set(self.subjects)))}
        return torch.tensor([numbers[subject] for subject in self.subjects])


def cut_clips(
    data: GaitDataset,
    frames: int,
    frame_shape: tuple[int, ...],
    seed: int,
    counts: FrameCounts = ANY_FRAME_COUNT,
) -> LabelledClips:
    """Cut a stretch of consecutive frames, at a place drawn at random, from each sequence.

    All clips have one length, and none is longer than its sequence: a network that sums frames would see
    sums that never occur. Sequences of less than half the median length are left out, where there are others.
    Where the network takes one frame count only, shorter sequences are repeated in a circle, as everywhere. A
    sequence that repeats another one of the same identity is left out: its distance to the other is zero and
    teaches nothing.

    Args:
        data: the sequences.
        frames: largest length of the clips.
        frame_shape: shape of the frames that the network takes.
        seed: random seed of the places.
        counts: frame counts that the network takes.

    Raises:
        DataError: a sequence has another frame size, or two identities have the same sequence.
    """
    rng = np.random.default_rng(seed)
    stretches: list[tuple[Silhouettes, str]] = []
    copies, limit = 0, counts.nearest(frames)
    seen: dict[bytes, SequenceRecord] = {}
    for silhouettes, record in data:
        if silhouettes.shape[1:] != frame_shape:
            raise DataError(
                f"{record.name}: silhouettes of {shape_text(silhouettes.shape[1:])}, but the network takes "
                f"{shape_text(frame_shape)}; resize them"
            )
        start = int(rng.integers(max(1, len(silhouettes) - limit + 1)))
        digest = hashlib.sha256(silhouettes.tobytes()).digest()
        if digest in seen:
            other = seen[digest]
            if other.subject != record.subject:
                raise DataError(
                    f"{record.name} and {other.name} are the same sequence under two identities; remove one"
                )
            copies += 1
            continue
        seen[digest] = record
        stretches.append((silhouettes[start : start + limit].copy(), record.subject))
    length = limit if counts.fixed else counts.nearest(_common_length([len(one) for one, _ in stretches]))
    kept = [(one, subject) for one, subject in stretches if counts.fixed or len(one) >= length]
    kept = kept or stretches  # all are shorter than what the network takes
    clips = np.stack([one[np.arange(length) % len(one)] for one, _ in kept])
    subjects = [subject for _, subject in kept]
    return LabelledClips(torch.from_numpy(clips), subjects, copies, len(stretches) - len(kept))


def _common_length(lengths: list[int]) -> int:
    """Return the length of the shortest sequence that is not far shorter than the others."""
    least = float(np.median(lengths)) * FAR_SHORTER
    return min(length for length in lengths if length >= least)


def split_identities_off(subjects: list[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide clips into training clips and clips of held-out identities.

    Identities with fewer than two sequences are in neither set.

    Args:
        subjects: subject of each clip.
        share: share of identities to hold out, 0 to 1. At least two identities remain in each set.
        seed: random seed of the choice.

    Returns:
        Indices of the training clips, and of the held-out clips.

    Raises:
        DataError: fewer than eight identities have two sequences.
    """
    usable = usable_identities(subjects)
    if len(usable) < SMALLEST_IDENTITIES:
        raise DataError(
            f"{len(usable)} identities of the calibration set have {SMALLEST_SEQUENCES} sequences or more; "
            f"holding some of them out needs {SMALLEST_IDENTITIES}; use more calibration sequences"
        )
    count = min(max(2, round(share * len(usable))), len(usable) - 2)
    order = np.random.default_rng(seed).permutation(len(usable))
    held = {usable[position] for position in order[:count]}
    learned = {usable[position] for position in order[count:]}
    return (
        [index for index, subject in enumerate(subjects) if subject in learned],
        [index for index, subject in enumerate(subjects) if subject in held],
    )


def usable_identities(subjects: list[str]) -> list[str]:
    """Return the identities with at least two sequences, sorted."""
    return sorted(subject for subject, count in Counter(subjects).items() if count >= SMALLEST_SEQUENCES)
