"""Calibration sequences as clips of one length, for training."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sequences import shape_text

SMALLEST_IDENTITIES, SMALLEST_SEQUENCES = 8, 2  # minimum for IDC: identities, and sequences of each


@dataclass(frozen=True)
class LabelledClips:
    """Clips of sequences, with their identities.

    Attributes:
        silhouettes: clips ``[n, s, h, w]`` uint8.
        subjects: subject of each clip.
        copies: number of sequences that were left out because they repeat another one.
    """

    silhouettes: torch.Tensor
    subjects: list[str]
    copies: int

    @property
    def labels(self) -> torch.Tensor:
        """Return identities as numbers, ``[n]`` int64."""
        numbers = {subject: number for number, subject in enumerate(sorted(set(self.subjects)))}
        return torch.tensor([numbers[subject] for subject in self.subjects])


def cut_clips(data: GaitDataset, frames: int, frame_shape: tuple[int, ...], seed: int) -> LabelledClips:
    """Cut a clip from each sequence at a random position.

    A shorter sequence is repeated cyclically. A sequence that repeats another one of the same identity is
    left out: their distance is always zero, so it gives no gradient.

    Args:
        data: sequences to cut.
        frames: frames of a clip.
        frame_shape: shape of a frame of the network.
        seed: random seed of the positions.

    Raises:
        DataError: a sequence has another frame size, or two identities have the same sequence.
    """
    rng = np.random.default_rng(seed)
    clips, subjects, copies = [], [], 0
    seen: dict[bytes, str] = {}
    for silhouettes, record in data:
        if silhouettes.shape[1:] != frame_shape:
            raise DataError(
                f"{record.name}: silhouettes of {shape_text(silhouettes.shape[1:])}, but the network takes "
                f"{shape_text(frame_shape)}; resize them"
            )
        start = int(rng.integers(max(1, len(silhouettes) - frames + 1)))
        digest = hashlib.sha256(silhouettes.tobytes()).digest()
        if digest in seen:
            other = seen[digest]
            if other.split("/")[0] != record.subject:
                raise DataError(
                    f"{record.name} and {other} are the same sequence under two identities; remove one"
                )
            copies += 1
            continue
        seen[digest] = record.name
        clips.append(silhouettes[(start + np.arange(frames)) % len(silhouettes)])
        subjects.append(record.subject)
    return LabelledClips(torch.from_numpy(np.stack(clips)), subjects, copies)


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
            f"IDC and fine-tuning needs {SMALLEST_IDENTITIES}"
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
