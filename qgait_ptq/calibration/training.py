"""End-to-end training of quantizers on embeddings: the loop that IDC and fine-tuning share.

The number of steps is fixed, learning rates follow a cosine to zero, and trained values are averaged over the
last steps. Half way, a network is often worse than at the start, and the gain comes at the end of the
schedule. Nothing is therefore chosen on the way: `keep_best` compares the start, the end and the average
once, on held-out clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qgait_ptq.calibration.distances import IdcLoss, batch_loss, spread_of
from qgait_ptq.calibration.held_out import HeldOut
from qgait_ptq.calibration.optimizer import TrainingOptimizer
from qgait_ptq.calibration.trained_graph import LearningRates, Snapshot, TrainedGraph
from qgait_ptq.calibration.training_batches import Batch, BatchSource
from qgait_ptq.errors import CalibrationError
from qgait_ptq.quantizer.soft import HARD, TemperatureSchedule
from qgait_ptq.system.exchanging import gather_rows, share_of, sum_gradients
from qgait_ptq.system.processes import processes

WARM_UP = 0.05  # share of the steps in which the learning rates rise
SPREAD_CLIPS = 64  # without labels, from which the spread of embeddings is measured
CURVE_POINTS = 24  # of the curve of training losses
START, END, AVERAGE = "start", "end", "average"  # candidates


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of end-to-end training.

    Attributes:
        steps: number of steps.
        rates: largest learning rates of the schedule.
        temperature: temperature of the soft gradients.
        averaged: share of the steps, the last ones, whose trained values are averaged; 0 for no average.
        micro_batch: number of clips in one backward pass; results do not depend on it.
        fixed_batch: whether the network takes batches of `micro_batch` clips only. Several processes then
            share the clips of a step only if there are more.
        seed: random seed for batches.
    """

    steps: int
    rates: LearningRates
    temperature: TemperatureSchedule = HARD
    averaged: float = 0.2
    micro_batch: int = 16
    fixed_batch: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TrainingOutcome:
    """Result of training.

    Attributes:
        losses: held-out loss of each candidate: ``start``, ``end`` and ``average``.
        kept: the candidate with the lowest loss.
        steps: number of steps taken.
        curve: step and mean training loss since the point before.
        diverged: whether training stopped because the loss became NaN or infinite; the start is kept then.
    """

    losses: Mapping[str, float]
    kept: str
    steps: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    diverged: bool = False

    @property
    def improved(self) -> bool:
        """Return whether another candidate than the start is kept."""
        return self.kept != START

    @property
    def best(self) -> float:
        """Return the held-out loss of the candidate that is kept."""
        return self.losses[self.kept]


@dataclass
class _Progress:
    """What a run has reached: everything that the rest of it depends on, but for trained values."""

    step: int = 0
    average: Snapshot | None = None
    averaged: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last point of the curve
    diverged: bool = False


class EmbeddingTraining:
    """One training run, which can be saved after any step and resumed."""

    def __init__(
        self,
        trained: TrainedGraph,
        reference: nn.Module,
        batches: BatchSource,
        loss: IdcLoss,
        settings: TrainingSettings,
        device: torch.device,
    ) -> None:
        """Prepare a run.

        Args:
            trained: graph whose quantizers are trained.
            reference: the float network.
            batches: source of training batches.
            loss: loss to minimise.
            settings: settings of the training.
            device: device of both networks.
        """
        self.trained, self.reference, self.batches, self.loss = trained, reference, batches, loss
        self.settings, self.device = settings, device
        self.optimizer = TrainingOptimizer(trained.groups(settings.rates))
        self.start = trained.snapshot()
        self.progress = _Progress()
        self._spread: float | None = None  # of float embeddings of clips without labels, once measured

    def run(
        self,
        advance: Callable[[], None] = lambda: None,
        after_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Train until the steps are used up, or the loss is NaN or infinite.

        Args:
            advance: called after each step.
            after_step: called after each step with the number of steps taken.
        """
        progress = self.progress
        while progress.step < self.settings.steps and not progress.diverged:
            loss = self._train_step()
            if not math.isfinite(loss):
                progress.diverged = True
                break
            progress.losses.append(loss)
            self._add_to_average()
            self._add_to_curve()
            advance()
            after_step(progress.step)

    def keep_best(self, held_out: HeldOut) -> TrainingOutcome:
        """Restore the candidate with the lowest held-out loss: the start, the end or the average.

        Raises:
            CalibrationError: the held-out loss of the start is NaN or infinite.
        """
        progress = self.progress
        candidates: dict[str, Snapshot] = {START: self.start}
        if not progress.diverged and progress.step:
            candidates[END] = self.trained.snapshot()
            if progress.average is not None:
                candidates[AVERAGE] = progress.average
        losses: dict[str, float] = {}
        for name, snapshot in candidates.items():
            self.trained.restore(snapshot)
            losses[name] = held_out(self.trained.graph_module)
        if not math.isfinite(losses[START]):
            raise CalibrationError("the loss on the held-out identities is NaN or infinite before any step")
        kept = min(losses, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf)
        self.trained.restore(candidates[kept])
        return TrainingOutcome(losses, kept, progress.step, tuple(progress.curve), progress.diverged)

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        progress = self.progress
        return {
            "step": progress.step,
            "average": progress.average,
            "averaged": progress.averaged,
            "curve": progress.curve,
            "losses": progress.losses,
            "start": self.start,
            "current": self.trained.snapshot(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        average = state["average"]
        if average is not None:
            average = {name: _moved(values, self.device) for name, values in average.items()}
        self.progress = _Progress(
            state["step"],
            average,
            state["averaged"],
            [(int(step), float(loss)) for step, loss in state["curve"]],
            list(state["losses"]),
        )
        self.start = state["start"]
        self.trained.restore(state["current"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _train_step(self) -> float:
        """Take one optimizer step, unless the loss is NaN or infinite; return the loss."""
        step, steps = self.progress.step, self.settings.steps
        rng = np.random.default_rng([self.settings.seed, step])
        batch = self.batches.draw(rng, step)
        torch.manual_seed(int(rng.integers(2**31)))
        self.trained.set_temperature(self.settings.temperature.at(step, steps))
        self.optimizer.zero_grad()
        loss = self._backward(batch)
        if math.isfinite(loss):
            self.optimizer.step(rate_share(step, steps))
            self.progress.step += 1
        return loss

    def _backward(self, batch: Batch) -> float:
        """Compute the gradients of a batch, holding activations of `micro_batch` clips at a time.

        Without a finite loss, there are no gradients. The processes of a run share the clips, and all get
        the loss and the gradients of the whole batch.
        """
        pieces = self._pieces(batch.clips)
        labels = None if batch.labels is None else batch.labels.to(self.device)
        targets = batch.embeddings
        targets = self._embed(self.reference, pieces) if targets is None else targets.to(self.device)
        spread = self._measured_spread() if labels is None else None
        if len(pieces) == 1:
            loss = batch_loss(self.loss, self.trained(pieces[0].to(self.device)), targets, labels, spread)
            if bool(torch.isfinite(loss)):
                loss.backward()
            return float(loss.detach())
        # The loss needs all embeddings, but their autograd graphs need not exist together. Embed without
        # gradients, differentiate the loss by the embeddings, then embed each piece again with that gradient.
        embeddings = self._embed(self.trained, pieces)
        embeddings.requires_grad_(True)
        loss = batch_loss(self.loss, embeddings, targets, labels, spread)
        if bool(torch.isfinite(loss)):
            (gradient,) = torch.autograd.grad(loss, embeddings)
            parts = gradient.split([len(piece) for piece in pieces])
            for piece, part in share_of(list(zip(pieces, parts, strict=True))):
                self.trained(piece.to(self.device)).backward(part)
            sum_gradients(self.optimizer.parameters)
        return float(loss.detach())

    def _measured_spread(self) -> float:
        """Return the spread of float embeddings. The few clips of one batch would determine it badly."""
        if self._spread is None:
            found: list[Tensor] = []
            step, steps = 0, self.settings.steps
            while sum(map(len, found)) < SPREAD_CLIPS:
                batch = self.batches.draw(np.random.default_rng([self.settings.seed, steps + step]), step)
                if batch.labels is None:
                    found.append(self._embed(self.reference, self._pieces(batch.clips)))
                step += 1
            self._spread = spread_of(torch.cat(found))
        return self._spread

    def _pieces(self, clips: Tensor) -> Sequence[Tensor]:
        """Return clips in pieces of at most `micro_batch`, if possible at least one for each process."""
        size, count = self.settings.micro_batch, processes().count
        return clips.split(size if self.settings.fixed_batch else min(size, -(-len(clips) // count)))

    def _embed(self, network: Callable[[Tensor], Tensor], pieces: Sequence[Tensor]) -> Tensor:
        """Return the embeddings of all pieces without gradients. Processes share several pieces."""
        with torch.no_grad():
            if len(pieces) == 1:
                return network(pieces[0].to(self.device))
            return gather_rows([network(piece.to(self.device)) for piece in share_of(pieces)], self.device)

    def _add_to_average(self) -> None:
        """Add the trained values to their average, in the last part of the steps."""
        progress, settings = self.progress, self.settings
        if settings.averaged == 0 or progress.step <= (1 - settings.averaged) * settings.steps:
            return
        current = self.trained.snapshot()
        progress.averaged += 1
        if progress.average is None:
            progress.average = current
            return
        for name, parameters in progress.average.items():
            for key, mean in parameters.items():
                mean.lerp_(current[name][key], 1 / progress.averaged)

    def _add_to_curve(self) -> None:
        progress = self.progress
        every = max(1, self.settings.steps // CURVE_POINTS)
        if progress.step % every == 0 or progress.step == self.settings.steps:
            progress.curve.append((progress.step, float(np.mean(progress.losses))))
            progress.losses = []


def _moved(values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in values.items()}


def rate_share(step: int, steps: int) -> float:
    """Return the share of the full learning rate: a linear warm-up, then a cosine to zero."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
