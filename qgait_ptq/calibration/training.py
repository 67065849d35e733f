"""End-to-end training of quantizers on embeddings: the loop that IDC and fine-tuning share.

Batches are P×K (identities × sequences). The float network's embeddings are computed once. The state with the
lowest loss on held-out identities is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.trained_graph import LearningRates, TrainedGraph
from qgait_ptq.errors import CalibrationError
from qgait_ptq.quantizer.soft import HARD, TemperatureSchedule
from qgait_ptq.stages.training_data import Clips, TrainingData

WARM_UP = 0.1  # share of the steps in which the learning rates rise


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of end-to-end training.

    Attributes:
        steps: largest number of steps.
        rates: learning rates at the start. If an evaluation shows no improvement, training returns to the
            best step and halves them.
        temperature: temperature of the soft gradients.
        evaluate_every: steps between two evaluations on the held-out identities.
        patience: consecutive halvings after which training stops.
        micro_batch: number of clips in one backward pass; results do not depend on it.
        seed: random seed for batches.
    """

    steps: int
    rates: LearningRates
    temperature: TemperatureSchedule = HARD
    evaluate_every: int = 10
    patience: int = 5
    micro_batch: int = 16
    seed: int = 0


@dataclass
class TrainingOutcome:
    """Result of training.

    Attributes:
        start: held-out loss before training.
        best: lowest held-out loss.
        best_step: step of the lowest loss; 0 is before training.
        steps: number of steps taken.
        curve: step and held-out loss of each evaluation.
        diverged: whether training stopped because the loss became NaN or infinite.
    """

    start: float
    best: float
    best_step: int = 0
    steps: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    diverged: bool = False

    @property
    def improved(self) -> bool:
        """Return whether the held-out loss is lower than before."""
        return self.best < self.start


def embed_clips(network: nn.Module, clips: Clips, size: int, device: torch.device) -> Tensor:
    """Return embeddings of all clips without gradients, on the device."""
    with torch.no_grad():
        return torch.cat([network(batch) for batch in clips.batches(size, device)])


class EmbeddingTraining:
    """State of one training run, which can be saved after any step and resumed."""

    def __init__(
        self,
        trained: TrainedGraph,
        data: TrainingData,
        loss: IdcLoss,
        settings: TrainingSettings,
        device: torch.device,
    ) -> None:
        """Evaluate on the held-out identities before the first step.

        Raises:
            CalibrationError: the held-out loss is NaN or infinite.
        """
        self.trained, self.data, self.loss = trained, data, loss
        self.settings, self.device = settings, device
        self.optimizer = torch.optim.Adam(trained.groups(settings.rates), betas=(0.9, 0.99))
        self.step, self.failures, self.rate_share = 0, 0, 1.0
        start = self.held_out_loss()
        if not math.isfinite(start):
            raise CalibrationError("the loss on the held-out identities is NaN or infinite before any step")
        self.outcome = TrainingOutcome(start, start, curve=[(0, start)])
        self.best = trained.snapshot()

    def run(
        self, advance: Callable[[], None] = lambda: None, after_look: Callable[[], None] = lambda: None
    ) -> None:
        """Train until the steps or the patience are used up; then restore the best step.

        Args:
            advance: called after each step.
            after_look: called after each evaluation.
        """
        while self.step < self.settings.steps and self.failures < self.settings.patience:
            if not self._train_step():
                self.outcome = replace(self.outcome, diverged=True)
                break
            advance()
            if self.step % self.settings.evaluate_every == 0 or self.step == self.settings.steps:
                self._look()
                after_look()
        self.outcome = replace(self.outcome, steps=self.step)
        self.trained.restore(self.best)

    def held_out_loss(self) -> float:
        """Return the loss over all pairs of the held-out clips."""
        data = self.data
        embeddings = embed_clips(
            self.trained.graph_module, data.held_out, self.settings.micro_batch, self.device
        )
        labels = data.held_out.labels.to(self.device)
        with torch.no_grad():
            return float(self.loss(embeddings, data.held_out_embeddings, labels))

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        outcome = self.outcome
        return {
            "step": self.step,
            "failures": self.failures,
            "rate_share": self.rate_share,
            "current": self.trained.snapshot(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "outcome": [outcome.start, outcome.best, outcome.best_step, outcome.curve],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.step, self.best = state["step"], state["best"]
        self.failures, self.rate_share = state["failures"], state["rate_share"]
        self.trained.restore(state["current"])
        self.optimizer.load_state_dict(state["optimizer"])
        start, best, best_step, curve = state["outcome"]
        self.outcome = TrainingOutcome(start, best, best_step, curve=[tuple(point) for point in curve])

    def _train_step(self) -> bool:
        """Take one optimizer step; return False if the loss is NaN or infinite."""
        rng = np.random.default_rng([self.settings.seed, self.step])
        indices = self.data.sampler.draw(rng)
        torch.manual_seed(int(rng.integers(2**31)))
        self.trained.set_temperature(self.settings.temperature.at(self.step, self.settings.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * self.rate_share
        self.optimizer.zero_grad()
        if not self._backward(indices):
            return False
        self.optimizer.step()
        self.step += 1
        return True

    def _backward(self, indices: list[int]) -> bool:
        """Compute the gradients of a batch, holding activations of `micro_batch` clips at a time."""
        clips, size = self.data.clips, self.settings.micro_batch
        targets = self.data.embeddings[indices]
        labels = clips.labels[indices].to(self.device)
        if len(indices) <= size:
            loss = self.loss(self._embed(clips, indices), targets, labels)
            if not bool(torch.isfinite(loss)):
                return False
            loss.backward()
            return True
        # The loss needs all embeddings, but their autograd graphs need not exist together. Embed without
        # gradients, differentiate the loss by the embeddings, then embed each piece again with that gradient.
        pieces = [indices[start : start + size] for start in range(0, len(indices), size)]
        with torch.no_grad():
            embeddings = torch.cat([self._embed(clips, piece) for piece in pieces])
        embeddings.requires_grad_(True)
        loss = self.loss(embeddings, targets, labels)
        if not bool(torch.isfinite(loss)):
            return False
        (gradient,) = torch.autograd.grad(loss, embeddings)
        for piece, part in zip(pieces, gradient.split(size), strict=True):
            self._embed(clips, piece).backward(part)
        return True

    def _embed(self, clips: Clips, indices: list[int]) -> Tensor:
        return self.trained(clips.batch(indices, self.device))

    def _look(self) -> None:
        loss = self.held_out_loss()
        self.outcome.curve.append((self.step, loss))
        if loss < self.outcome.best:
            self.outcome = replace(self.outcome, best=loss, best_step=self.step)
            self.best = self.trained.snapshot()
            self.failures = 0
        else:
            self.trained.restore(self.best)
            self.optimizer.state.clear()  # the averages belong to the steps that were discarded
            self.rate_share /= 2
            self.failures += 1


def rate_share(step: int, steps: int) -> float:
    """Return the share of the full learning rate: a linear warm-up, then a cosine to zero."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
