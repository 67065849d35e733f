"""The rank loss: what sequences lose in finding their own person.

Embeddings that come closer to those of the float network do not always rank better. The fine differences
between people suffer more from few bits than the large ones between two walks of one person. The rank loss
compares what a ranking depends on. With the mean distance D over parts, by the metric that ranks, and μ the
mean of D^T over pairs of different people, sequence i finds sequence j of the same person with the log
probability

    log p_i(j) = −D_ij / (τ μ) − log Σ_{k ≠ i} exp(−D_ik / (τ μ))

    L_rank = mean over pairs (i, j) of one person of relu(log p^T_i(j) − log p^S_i(j))

T is the float and S the quantized network. The loss and its gradient are zero for the float network. A pair
that ranks better than in the float network does not lower the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgait_ptq.calibration.distances import SMALLEST_SQUARE, by_part, pairwise_distances
from qgait_ptq.gait.metric_names import Metric

SHARPNESS = 40.0  # 1/τ: neighbours nearer than a fortieth of the mean distance count alike
FAR = -1e4  # logarithm of the weight of a sequence itself


def rank_loss(quantized: Tensor, reference: Tensor, labels: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Return L_rank of a batch; 0 without two sequences of one person and one of another.

    Args:
        quantized: embeddings S of the quantized network, ``[n, c, p]`` or ``[n, c]``.
        reference: embeddings T of the float network, of the same shape.
        labels: identities, ``[n]``.
        metric: distance between embeddings.
    """
    student, teacher = (mean_distances(embedding, metric) for embedding in (quantized, reference.detach()))
    same, itself = labels[:, None] == labels[None], torch.eye(len(labels), dtype=torch.bool)
    itself = itself.to(labels.device)
    pairs = same & ~itself
    if not bool(pairs.any()) or bool(same.all()):
        return student.new_zeros(())
    unit = teacher[~same].mean().clamp_min(SMALLEST_SQUARE)

    def log_probabilities(distances: Tensor) -> Tensor:
        return (-SHARPNESS * distances / unit).masked_fill(itself, FAR).log_softmax(1)[pairs]

    return (log_probabilities(teacher) - log_probabilities(student)).relu().mean()


def mean_distances(embedding: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Return distances ``[n, n]``, as rankings use them: mean over parts.

    Args:
        embedding: embeddings ``[n, c, p]`` or ``[n, c]``.
        metric: distance between embeddings.
    """
    return pairwise_distances(by_part(embedding), metric).mean(0)
