"""Rank-1 of identities that nothing is fitted to: what a choice of widths is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.embedding import embed_taken
from qgait_ptq.gait.metrics import part_distances, single_shot_rank1
from qgait_ptq.graph.frame_counts import FrameCounts

RANKED_SEQUENCES = 256


@dataclass(frozen=True)
class HeldOutRanking:
    """Held-out identities are recognised among the whole calibration set.

    Attributes:
        data: the sequences, of held-out identities and of the others.
        held_out: the identities to recognise.
        frame_shape: of the frames that the network takes.
        frames: frame counts that the network takes.
        device: where networks run.
    """

    data: GaitDataset
    held_out: frozenset[str]
    frame_shape: tuple[int, ...]
    frames: FrameCounts
    device: torch.device

    @classmethod
    def of(
        cls,
        data: GaitDataset,
        held_out: Sequence[str],
        frame_shape: tuple[int, ...],
        frames: FrameCounts,
        device: torch.device,
        seed: int,
    ) -> HeldOutRanking:
        """From a calibration set, of which some sequences are drawn where it is large."""
        return cls(data.choose(RANKED_SEQUENCES, seed), frozenset(held_out), frame_shape, frames, device)

    def rank1(self, network: Callable[[Tensor], Tensor]) -> float:
        """Rank-1 in percent, expected over galleries with one sequence of each identity."""
        embedded = embed_taken(
            self.data, [lambda batch: network(batch.to(self.device))], self.frame_shape, self.frames
        )
        (embeddings,) = embedded.embeddings
        subjects = [self.data.records[index].subject for index in embedded.kept]
        numbers = {subject: number for number, subject in enumerate(sorted(set(subjects)))}
        labels = torch.tensor([numbers[subject] for subject in subjects])
        probes = torch.tensor([subject in self.held_out for subject in subjects])
        return single_shot_rank1(part_distances(embeddings, embeddings), labels, probes)
