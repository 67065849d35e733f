"""Comparison of two networks on the same people: paired differences, and distances between sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from qgait_ptq.gait.data.dataset import SequenceRecord
from qgait_ptq.gait.metric_names import Metric
from qgait_ptq.gait.metrics import part_distances
from qgait_ptq.gait.protocol_accuracy import IdentityAccuracy

RESAMPLES = 2000
COVERAGE = (2.5, 97.5)  # percentiles
COMPARED_SEQUENCES, SHOWN_PAIRS, HISTOGRAM_BINS = 500, 400, 60


@dataclass(frozen=True)
class PairedDifference:
    """A difference of means over identities, in points, with its 95 % interval.

    Attributes:
        mean: mean of the second network minus mean of the first.
        low: lower end of the interval.
        high: upper end of the interval.
        identities: number of identities.
    """

    mean: float
    low: float
    high: float
    identities: int


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], seed: int = 0
) -> PairedDifference:
    """Compare two networks by a paired bootstrap over identities (Efron & Tibshirani 1993).

    Args:
        first: accuracy of the first network in percent, by identity.
        second: accuracy of the second network in percent, by identity.
        seed: random seed of the resamples.
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
    """Return paired differences of ``rank1`` and ``mAP``, both means over identities, for ``report.json``."""
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
    """Compare distances between sequences before and after quantization.

    Args:
        reference: float embeddings ``[n, c, p]``.
        quantized: quantized embeddings ``[n, c, p]``.
        records: records of the sequences.
        metric: metric of the ranking.
        seed: random seed for the choice of sequences and pairs in a large set.

    Returns:
        ``edges``: bounds of the histogram bins. ``float`` and ``quantized``: shares of pairs in each bin for
        the ``same`` and for ``different`` people. ``pairs``: single distances (float, quantized) for both.
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
    digits = 5 + max(0, math.floor(-math.log10(highest or 1.0)))  # cosine distances can be small

    def shares(distances: Tensor) -> dict[str, list[float]]:
        histograms = {}
        for name, mask in (("same", upper & same), ("different", upper & ~same)):
            counts, _ = np.histogram(distances[mask].numpy(), bins=edges)
            histograms[name] = [round(float(count), 6) for count in counts / max(1, counts.sum())]
        return histograms

    pairs = {}
    for name, mask in (("same", upper & same), ("different", upper & ~same)):
        indices = torch.nonzero(mask)
        chosen = indices[torch.from_numpy(rng.permutation(len(indices))[:SHOWN_PAIRS])]
        pairs[name] = [
            [round(float(before[i, j]), digits), round(float(after[i, j]), digits)]
            for i, j in chosen.tolist()
        ]
    return {
        "edges": [round(float(edge), digits) for edge in edges],
        "float": shares(before),
        "quantized": shares(after),
        "pairs": pairs,
        "sequences": len(some),
    }
