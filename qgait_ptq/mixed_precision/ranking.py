"""Rank-1 of held-out identities, by which widths are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qgait_ptq.gait.data.clips import SMALLEST_SEQUENCES
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.embedding import embed_taken
from qgait_ptq.gait.metric_names import Metric
from qgait_ptq.gait.metrics import part_distances, single_shot_rank1
from qgait_ptq.graph.frame_counts import FrameCounts

RANKED_SEQUENCES = 256


@dataclass(frozen=True)
class HeldOutRanking:
    """A ranking of held-out identities among the calibration set.

    Attributes:
        data: sequences of all identities.
        held_out: identities to recognise.
        frame_shape: shape of the network's frames.
        frames: frame counts that the network takes.
        device: device of the networks.
        metric: distance between embeddings.
    """

    data: GaitDataset
    held_out: frozenset[str]
    frame_shape: tuple[int, ...]
    frames: FrameCounts
    device: torch.device
    metric: Metric

    @classmethod
    def of(
        cls,
        data: GaitDataset,
        held_out: Sequence[str],
        frame_shape: tuple[int, ...],
        frames: FrameCounts,
        device: torch.device,
        metric: Metric,
        seed: int,
    ) -> HeldOutRanking:
        """Return a ranking on a calibration set.

        From a large set, some sequences are drawn: half of them of held-out identities, at least two of each.
        """
        names = frozenset(held_out)
        if len(data) > RANKED_SEQUENCES:
            own = data.where(lambda record: record.subject in names)
            others = data.where(lambda record: record.subject not in names)
            probes = own.choose(RANKED_SEQUENCES // 2, seed, together=SMALLEST_SEQUENCES)
            gallery = others.choose(RANKED_SEQUENCES - len(probes), seed)
            data = GaitDataset([*probes.records, *gallery.records], data.description, data.layout)
        return cls(data, names, frame_shape, frames, device, metric)

    def rank1(self, network: Callable[[Tensor], Tensor]) -> float:
        """Return rank-1 in percent, averaged over galleries with one sequence of each identity."""
        embedded = embed_taken(
            self.data, [lambda batch: network(batch.to(self.device))], self.frame_shape, self.frames
        )
        (embeddings,) = embedded.embeddings
        subjects = [self.data.records[index].subject for index in embedded.kept]
        numbers = {subject: number for number, subject in enumerate(sorted(set(subjects)))}
        labels = torch.tensor([numbers[subject] for subject in subjects])
        probes = torch.tensor([subject in self.held_out for subject in subjects])
        return single_shot_rank1(part_distances(embeddings, embeddings, self.metric), labels, probes)
