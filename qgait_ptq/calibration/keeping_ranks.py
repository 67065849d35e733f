"""Training of the last layers so that people keep their places in a ranking.

The refit makes embeddings as similar to the float ones as it can, which does not keep all ranks. Where labels
are known, the last layers are trained a few hundred steps more, on L_anchor and the rank loss
(`rank_loss`). Identities that nothing here learns from decide whether the result is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qgait_ptq.calibration.distances import IdcLoss, spread_of
from qgait_ptq.calibration.last_layers import LastInputs, LastPart, join
from qgait_ptq.calibration.optimizer import TrainingOptimizer
from qgait_ptq.calibration.rank_loss import rank_loss
from qgait_ptq.calibration.trained_graph import LearningRates, TrainedGraph
from qgait_ptq.calibration.training import END, START, rate_share
from qgait_ptq.gait.metric_names import Metric
from qgait_ptq.quantizer.trainable import WeightMode

CLIPS = 256  # of a step


@dataclass(frozen=True)
class RankSettings:
    """Settings of the training.

    Attributes:
        steps: number of steps.
        weight: weight of the rank loss beside L_anchor.
        rates: largest learning rates.
        seed: random seed of the batches.
        metric: distance between embeddings, for the rank loss.
    """

    steps: int
    weight: float
    rates: LearningRates
    seed: int = 0
    metric: Metric = "euclidean"


@dataclass(frozen=True)
class RankOutcome:
    """Result of the training.

    Attributes:
        losses: loss of the judging identities before and after it: ``start`` and ``end``; no ``end`` if the
            loss became NaN or infinite.
        kept: which of the two is kept.
    """

    losses: dict[str, float]
    kept: str


def keep_ranks(
    part: LastPart,
    learned: Sequence[LastInputs],
    judging: Sequence[LastInputs],
    magnitudes: dict[str, Tensor],
    settings: RankSettings,
    advance: Callable[[], None] = lambda: None,
) -> RankOutcome:
    """Train the last layers in place, unless this does not serve the judging identities.

    Args:
        part: the last layers.
        learned: inputs to learn from. Only those with labels count in the rank loss.
        judging: inputs of other identities.
        magnitudes: see `trained_graph.output_magnitudes`.
        settings: settings of the training.
        advance: called after each step.
    """
    nodes = list(part.block.nodes)
    trained = TrainedGraph(part.quantized, part.reference, magnitudes, WeightMode.LATENT, nodes)
    optimizer = TrainingOptimizer(trained.groups(settings.rates))
    spread = spread_of(torch.cat([inputs.embeddings for inputs in learned]))
    criterion = _Criterion(part, spread, settings.weight, part.can_join(learned), settings.metric)
    losses = {START: criterion.judge(judging)}
    count = max(1, round(CLIPS / len(learned[0].labels)))
    for step in range(settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        drawn = rng.choice(len(learned), min(count, len(learned)), replace=False)
        optimizer.zero_grad()
        loss = criterion([learned[index] for index in drawn])
        if not bool(torch.isfinite(loss)):
            trained.discard()
            return RankOutcome(losses, START)
        loss.backward()
        optimizer.step(rate_share(step, settings.steps))
        advance()
    end = criterion.judge(judging)
    if math.isfinite(end):
        losses[END] = end
    if END in losses and end < losses[START]:
        trained.settle()
        return RankOutcome(losses, END)
    trained.discard()
    return RankOutcome(losses, START)


@dataclass(frozen=True)
class _Criterion:
    """L_anchor of all clips of some batches, and the weighted rank loss of those with labels.

    Attributes:
        part: the last layers.
        spread: see `distances.spread_of`.
        weight: weight of the rank loss.
        joins: whether the batches are computed as one, so that weights are quantized once.
        metric: distance between embeddings, for the rank loss.
    """

    part: LastPart
    spread: float
    weight: float
    joins: bool
    metric: Metric

    def __call__(self, batches: Sequence[LastInputs]) -> Tensor:
        """Return the loss, with gradients."""
        one = join(batches) if self.joins else None
        given = (
            torch.cat([self.part.embed(inputs) for inputs in batches])
            if one is None
            else self.part.embed(one)
        )
        wanted = torch.cat([inputs.embeddings for inputs in batches])
        labels = torch.cat([inputs.labels for inputs in batches])
        known = labels >= 0
        anchor = IdcLoss.anchor(given, wanted, self.spread)
        ranks = rank_loss(given[known], wanted[known], labels[known], self.metric)
        return anchor + self.weight * ranks

    def judge(self, batches: Sequence[LastInputs]) -> float:
        """Return the loss as a number."""
        with torch.no_grad():
            return float(self(batches))
