"""Damage: the difference between quantized and float embeddings, measured by distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from qgait_ptq.calibration.distances import by_part, pairwise_distances
from qgait_ptq.gait.metric_names import Metric
from qgait_ptq.gait.metrics import embedding_sqnr, single_shot_rank1

TINY = 1e-12


@dataclass(frozen=True)
class Damage:
    """Damage of quantization to a set of embeddings.

    Attributes:
        distortion: mean squared change of the distances between different people, by part, in units of
            their mean. Widths are chosen by it, because it adds up over layers.
        distance_error: mean absolute change of the ranking distance (mean over parts) between different
            people, in percent of its mean.
        sqnr_db: SQNR of the embeddings in decibels.
        rank1_drop: loss of rank-1, in points, for galleries with one sequence of each identity; see
            `single_shot_rank1`. None if no identity has two sequences.
    """

    distortion: float
    distance_error: float
    sqnr_db: float
    rank1_drop: float | None


def judge_damage(
    reference: Tensor, quantized: Tensor, labels: Tensor, metric: Metric = "euclidean"
) -> Damage:
    """Compare embeddings of the same sequences.

    Args:
        reference: embeddings of the float network, ``[n, c, p]`` or ``[n, c]``.
        quantized: embeddings of the quantized network, of the same shape.
        labels: identities, ``[n]``; at least two.
        metric: distance between embeddings.
    """
    float_distances = pairwise_distances(by_part(reference), metric)
    quantized_distances = pairwise_distances(by_part(quantized), metric)
    different = labels[:, None] != labels[None]
    unit = float_distances[:, different].mean().clamp_min(TINY)
    change = quantized_distances - float_distances
    before, after = float_distances.mean(0), quantized_distances.mean(0)
    drop = single_shot_rank1(before, labels) - single_shot_rank1(after, labels)
    return Damage(
        distortion=float((change[:, different] / unit).square().mean()),
        distance_error=100 * float((after - before)[different].abs().mean() / before[different].mean()),
        sqnr_db=embedding_sqnr(reference, quantized),
        rank1_drop=None if math.isnan(drop) else drop,
    )
