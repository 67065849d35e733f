"""The IDC loss, which keeps distances between people as in the float network.

Inter-class distance-guided calibration is an idea of the QGait paper (arXiv 2405.13859). Only its abstract
was available to us; the formulas are ours. With embeddings of n clips by part, d_pij the distance of the
clips i and j in part p, T the float and S the quantized network, N the pairs with different and P those with
the same label, and μ the mean of d^T over all parts and N:

    L_neg    = mean over parts and N of Huber((d^S − d^T) / μ)
    L_pos    = the same over P
    L_anchor = Σ ‖s − t‖² / Σ ‖t − mean t‖²
    L        = L_neg + λ_pos · L_pos + λ_anchor · L_anchor

Distances are those of the metric that ranks. Euclidean ones are ``d_pij = sqrt(relu(‖e_i − e_j‖²) + 1e−12)``,
cosine ones ``d_pij = 1 − cos(e_i, e_j) = ‖u_i − u_j‖² / 2`` with ``u = e / ‖e‖``.

All parts share one μ: with one for each part, a part could be rescaled without cost, which changes the
ranking by mean Euclidean distance. Euclidean distances do not see shifts and rotations of all embeddings,
cosine ones neither rotations nor lengths. Rotations matter if the float network embedded the gallery, so the
loss has an anchor term. It compares embeddings as they are with both metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qgait_ptq.gait.metric_names import Metric, check_metric

SMALLEST_SQUARE = 1e-12
SMALLEST_LENGTH = 1e-12  # shorter embeddings have no direction, as in `gait.metrics.part_distances`


def by_part(embedding: Tensor) -> Tensor:
    """Rearrange embeddings ``[n, c, p]`` or ``[n, c]`` to ``[p, n, c]`` float32."""
    parts = embedding[..., None] if embedding.ndim == 2 else embedding
    return parts.permute(2, 0, 1).float()


def pairwise_distances(parts: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Return distances within each part, with a finite gradient at zero.

    Args:
        parts: embeddings by part, ``[p, n, c]``.
        metric: ``euclidean`` or ``cosine``, as `gait.metrics.part_distances` computes it for each part.

    Returns:
        Distances ``[p, n, n]``.

    Raises:
        ConfigError: the metric is unknown.
    """
    check_metric(metric)
    if metric == "cosine":
        return _cosine_distances(parts)
    return (_squared_distances(parts) + SMALLEST_SQUARE).sqrt()


def _cosine_distances(parts: Tensor) -> Tensor:
    """Return ``1 − cos`` within each part ``[p, n, c]``: half the squared distance of unit vectors.

    ``1 − cos`` itself would lose its digits for embeddings in nearly one direction. An embedding of zeros has
    distance 1 to all others and gets no gradient: no direction is better than another.
    """
    lengths = parts.norm(dim=-1, keepdim=True)
    undirected = lengths <= SMALLEST_LENGTH  # not of NaN, which stays NaN
    directions = (parts / lengths.clamp_min(SMALLEST_LENGTH)).masked_fill(undirected, 0)
    missing = undirected.squeeze(-1).to(parts.dtype)  # 1 − ‖u‖²
    return (_squared_distances(directions) + missing[:, :, None] + missing[:, None, :]) / 2


def _squared_distances(parts: Tensor) -> Tensor:
    """Return squared Euclidean distances ``[p, n, n]`` within each part ``[p, n, c]``."""
    # Subtracting the mean avoids cancellation between large squares, which would lose small distances.
    centred = parts - parts.mean(1, keepdim=True).detach()
    squared = centred.square().sum(-1)
    product = centred @ centred.mT
    between = squared[:, :, None] + squared[:, None, :] - 2 * product
    return between.relu()


@dataclass(frozen=True)
class IdcLoss:
    """The loss; call it with embeddings of both networks.

    Attributes:
        neg_weight: weight of L_neg.
        pos_weight: weight λ_pos of L_pos.
        anchor_weight: weight λ_anchor of L_anchor.
        neighbour_weight: weight of a term for ranks. It is the Kullback-Leibler divergence between the two
            networks' distributions over the other clips: softmax of −D/(0.1 μ), with D the mean over parts.
        metric: distance between embeddings, for all terms but L_anchor.
    """

    neg_weight: float = 1.0
    pos_weight: float = 0.25
    anchor_weight: float = 1.0
    neighbour_weight: float = 0.0
    metric: Metric = "euclidean"

    def __call__(self, quantized: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            quantized: embeddings S of the quantized network, ``[n, c, p]`` or ``[n, c]``.
            reference: embeddings T of the float network, of the same shape.
            labels: identities, ``[n]``.
        """
        student, teacher = by_part(quantized), by_part(reference.detach())
        terms = self.terms(student, teacher, labels)
        weights = (self.neg_weight, self.pos_weight, self.anchor_weight, self.neighbour_weight)
        total = student.new_zeros(())
        for weight, term in zip(weights, terms, strict=True):
            if weight > 0:
                total = total + weight * term
        return total

    @staticmethod
    def anchor(quantized: Tensor, reference: Tensor, spread: float | None = None) -> Tensor:
        """Return L_anchor of embeddings ``[n, c, p]`` or ``[n, c]``, which needs no labels.

        Args:
            quantized: embeddings of the quantized network.
            reference: embeddings of the float network.
            spread: `spread_of` many float embeddings; None for that of `reference`.
        """
        student, teacher = by_part(quantized), by_part(reference.detach())
        if spread is None:
            return _relative_error(student, teacher)
        return (student - teacher).square().sum() / (len(quantized) * spread)

    def terms(self, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Return L_neg, L_pos, L_anchor and the neighbour term, unweighted, of embeddings ``[p, n, c]``."""
        same = labels[:, None] == labels[None]
        others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        student_distances = pairwise_distances(student, self.metric)
        teacher_distances = pairwise_distances(teacher, self.metric)
        unlike = ~same
        # If all labels are equal, the unit is the mean over all pairs.
        unit = (
            teacher_distances[:, unlike if bool(unlike.any()) else others].mean().clamp_min(SMALLEST_SQUARE)
        )
        error = F.huber_loss(student_distances / unit, teacher_distances / unit, reduction="none")
        anchor = _relative_error(student, teacher)
        neighbour = _neighbour_divergence(
            student_distances.mean(0) / unit, teacher_distances.mean(0) / unit, others
        )
        return _mean(error, unlike), _mean(error, same & others), anchor, neighbour


def batch_loss(
    loss: IdcLoss, given: Tensor, wanted: Tensor, labels: Tensor | None, spread: float | None = None
) -> Tensor:
    """Return the IDC loss of embeddings with labels, and the anchor alone of those without.

    Args:
        loss: loss of the stage.
        given: embeddings of the quantized network, ``[n, c, p]`` or ``[n, c]``.
        wanted: embeddings of the float network, of the same shape.
        labels: identities, ``[n]``; None for clips without labels.
        spread: see `IdcLoss.anchor`, for clips without labels.
    """
    return loss.anchor(given, wanted, spread) if labels is None else loss(given, wanted, labels)


def spread_of(embeddings: Tensor) -> float:
    """Return the mean squared distance of embeddings ``[n, c, p]`` or ``[n, c]`` from their mean."""
    parts = by_part(embeddings)
    total = (parts - parts.mean(1, keepdim=True)).square().sum() / len(embeddings)
    return max(float(total), SMALLEST_SQUARE)


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error as a share of the spread of the float network's embeddings ``[p, n, c]``."""
    spread = (teacher - teacher.mean(1, keepdim=True)).square().sum().clamp_min(SMALLEST_SQUARE)
    return (student - teacher).square().sum() / spread


def _mean(error: Tensor, pairs: Tensor) -> Tensor:
    """Return the mean over parts and the selected pairs; 0 without pairs."""
    return error[:, pairs].mean() if bool(pairs.any()) else error.new_zeros(())


def _neighbour_divergence(given: Tensor, wanted: Tensor, others: Tensor) -> Tensor:
    sharpness, far = 10.0, 1e4
    logits = (-sharpness * given).masked_fill(~others, -far)
    target = (-sharpness * wanted).masked_fill(~others, -far)
    return F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)
