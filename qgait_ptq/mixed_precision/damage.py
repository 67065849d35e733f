"""How much embeddings that were quantized somewhere differ from the float ones, as a gallery sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from qgait_ptq.calibration.distances import by_part, pairwise_distances
from qgait_ptq.gait.metrics import embedding_sqnr, single_shot_rank1

TINY = 1e-12


@dataclass(frozen=True)
class Damage:
    """What quantization did to a set of embeddings.

    Attributes:
        distortion: mean squared change of the distances between different people, by part, in units of
            their mean; what widths are chosen by, since errors of different layers add up in it.
        distance_error: mean absolute change of the ranking distance (mean over parts) between different
            people, in percent of its mean.
        sqnr_db: of the embeddings.
        rank1_drop: points of rank-1 lost, of galleries with one sequence of each identity; see
            `single_shot_rank1`; None where nobody has two sequences.
    """

    distortion: float
    distance_error: float
    sqnr_db: float
    rank1_drop: float | None


def judge_damage(reference: Tensor, quantized: Tensor, labels: Tensor) -> Damage:
    """Compare embeddings of the same sequences.

    Args:
        reference: of the float network, ``[n, c, p]`` or ``[n, c]``.
        quantized: the same shape.
        labels: identities, ``[n]``; at least two.
    """
    wanted, given = pairwise_distances(by_part(reference)), pairwise_distances(by_part(quantized))
    different = labels[:, None] != labels[None]
    unit = wanted[:, different].mean().clamp_min(TINY)
    change = given - wanted
    before, after = wanted.mean(0), given.mean(0)
    drop = single_shot_rank1(before, labels) - single_shot_rank1(after, labels)
    return Damage(
        distortion=float((change[:, different] / unit).square().mean()),
        distance_error=100 * float((after - before)[different].abs().mean() / before[different].mean()),
        sqnr_db=embedding_sqnr(reference, quantized),
        rank1_drop=None if math.isnan(drop) else drop,
    )
