"""Two networks on the same people: paired differences, and what became of the distances between sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from qgait_ptq.gait.data.dataset import SequenceRecord
from qgait_ptq.gait.metrics import Metric, part_distances
from qgait_ptq.gait.protocols import IdentityAccuracy

RESAMPLES = 2000
COVERAGE = (2.5, 97.5)  # percentiles
COMPARED_SEQUENCES, SHOWN_PAIRS, HISTOGRAM_BINS = 500, 400, 60


@dataclass(frozen=True)
class PairedDifference:
    """A difference of means over identities, in points, with its 95 % interval.

    Attributes:
        mean: second minus first.
        low: end of the interval.
        high: end of the interval.
        identities: how many there are.
    """

    mean: float
    low: float
    high: float
    identities: int


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], seed: int = 0
) -> PairedDifference:
    """Difference of two networks by a paired bootstrap over identities (Efron & Tibshirani 1993).

    Args:
        first: identity → accuracy of one network.
        second: the same identities under the other.
        seed: of the resamples.
    """
    names = sorted(first)
    differences = np.array([second[name] - first[name] for name in names])
    rng = np.random.default_rng(seed)
    means = differences[rng.integers(len(names), size=(RESAMPLES, len(names)))].mean(1)
    low, high = np.percentile(means, COVERAGE)
    return PairedDifference(float(differences.mean()), float(low), float(high), len(names))


def compare_accuracy(
    first: Mapping[str, IdentityAccuracy], second: Mapping[str, IdentityAccuracy]
) -> dict[str, dict[str, float]]:
    """Paired differences of ``rank1`` and ``mAP``, both means over identities, as in ``report.json``."""
    return {
        "rank1": asdict(
            paired_difference(
                {name: one.rank1 for name, one in first.items()},
                {name: one.rank1 for name, one in second.items()},
            )
        ),
        "mAP": asdict(
            paired_difference(
                {name: one.average_precision for name, one in first.items()},
                {name: one.average_precision for name, one in second.items()},
            )
        ),
    }


def compare_distances(
    reference: Tensor, quantized: Tensor, records: Sequence[SequenceRecord], metric: Metric, seed: int
) -> dict[str, object]:
    """Distances between sequences of the same and of different people, before and after.

    Args:
        reference: embeddings ``[n, c, p]``.
        quantized: the same shape.
        records: whose they are.
        metric: of the ranking.
        seed: of the sequences and pairs that are drawn where there are many.

    Returns:
        ``edges`` of the histograms' bins; ``float`` and ``quantized``, each with the share of pairs in each
        bin for ``same`` and ``different`` people; ``pairs`` of single distances (float, quantized) for both.
    """
    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(len(records))[:COMPARED_SEQUENCES])
    upper = torch.triu(torch.ones(len(some), len(some), dtype=torch.bool), 1)
    subjects = [records[index].subject for index in some]
    same = torch.tensor([[a == b for b in subjects] for a in subjects])
    before, after = (
        part_distances(embeddings[some], embeddings[some], metric) for embeddings in (reference, quantized)
    )
    highest = float(torch.maximum(before, after)[upper].max()) if bool(upper.any()) else 1.0
    edges = np.linspace(0, highest or 1.0, HISTOGRAM_BINS + 1)

    def shares(distances: Tensor) -> dict[str, list[float]]:
        found = {}
        for name, mask in (("same", upper & same), ("different", upper & ~same)):
            counts, _ = np.histogram(distances[mask].numpy(), bins=edges)
            found[name] = [round(float(count), 6) for count in counts / max(1, counts.sum())]
        return found

    pairs = {}
    for name, mask in (("same", upper & same), ("different", upper & ~same)):
        places = torch.nonzero(mask)
        chosen = places[torch.from_numpy(rng.permutation(len(places))[:SHOWN_PAIRS])]
        pairs[name] = [
            [round(float(before[i, j]), 5), round(float(after[i, j]), 5)] for i, j in chosen.tolist()
        ]
    return {
        "edges": [round(float(edge), 5) for edge in edges],
        "float": shares(before),
        "quantized": shares(after),
        "pairs": pairs,
        "sequences": len(some),
    }
