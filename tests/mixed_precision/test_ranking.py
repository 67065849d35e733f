"""The ranking of held-out identities, by which widths are judged."""

import math

import numpy as np
import torch

from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.graph.frame_counts import ANY_FRAME_COUNT
from qgait_ptq.mixed_precision.ranking import RANKED_SEQUENCES, HeldOutRanking

CPU = torch.device("cpu")


def ranking_of(people, sequences, held_out, metric="euclidean"):
    rng = np.random.default_rng(0)
    pairs = [
        ((rng.random((2, 8, 8)) < 0.5).astype(np.uint8) * 255, f"p{person:03d}")
        for person in range(people)
        for _ in range(sequences)
    ]
    names = [f"p{person:03d}" for person in range(held_out)]
    return HeldOutRanking.of(
        GaitDataset.from_pairs(pairs), names, (8, 8), ANY_FRAME_COUNT, CPU, metric, seed=0
    )


def test_people_who_are_held_out_have_two_sequences_in_a_large_set():
    """With one sequence of each, nobody could be found again, and rank-1 would be NaN."""
    ranking = ranking_of(people=300, sequences=2, held_out=60)
    of_each = [sum(r.subject == name for r in ranking.data.records) for name in ranking.held_out]
    assert of_each == [2] * 60
    assert len(ranking.data) == RANKED_SEQUENCES
    rank1 = ranking.rank1(lambda batch: batch.flatten(2).mean(1)[..., None])
    assert math.isfinite(rank1)


def test_a_small_set_is_ranked_completely():
    assert len(ranking_of(people=20, sequences=3, held_out=5).data) == 60


def test_people_are_ranked_by_the_metric_of_the_data():
    """Two people in two directions, at random distances from the origin."""
    subjects = iter([f"p{person:03d}" for person in range(2) for _ in range(4)])
    lengths = iter([1.0, 9.0, 2.0, 7.0, 8.0, 1.0, 6.0, 3.0])

    def network(batch):
        direction = torch.tensor([1.0, 0.0] if next(subjects) == "p000" else [0.5, 1.0])
        return next(lengths) * direction[None, :, None]

    assert ranking_of(2, 4, 2, "cosine").rank1(network) == 100
    subjects = iter([f"p{person:03d}" for person in range(2) for _ in range(4)])
    lengths = iter([1.0, 9.0, 2.0, 7.0, 8.0, 1.0, 6.0, 3.0])
    assert ranking_of(2, 4, 2, "euclidean").rank1(network) < 80
