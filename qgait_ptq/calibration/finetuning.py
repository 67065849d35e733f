"""Stage 2, fine-tuning: blocks if requested, then end to end.

The end-to-end part imitates the float embeddings of many sequences without labels, and keeps the distances of
labelled ones (IDC). Few sequences would be overfitted. The temperature of the soft quantizer can rise in the
end-to-end part; it is 0 (straight-through) before, because a soft quantizer hinders convergence when used
from the start (an observation of the QGait paper). Held-out clips choose once between the network before
the stage, the network after the blocks, after the last step, and the average of the last steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from qgait_ptq.calibration.block_training import BlockBatches, BlockSettings, reconstruct_blocks
from qgait_ptq.calibration.correction import CorrectionSettings, Rounding, correct_layers
from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.held_out import HeldOut
from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.calibration.trained_graph import TrainedGraph, output_magnitudes
from qgait_ptq.calibration.training import (
    START,
    EmbeddingTraining,
    TrainingOutcome,
    TrainingSettings,
)
from qgait_ptq.calibration.training_batches import BatchSource
from qgait_ptq.errors import CalibrationError
from qgait_ptq.quantizer.trainable import WeightMode

SAVE_EVERY = 50  # steps between two saved states of the end-to-end part
BLOCKS = "blocks"  # name of a candidate


@dataclass(frozen=True)
class FinetuneOutcome:
    """Result of fine-tuning.

    Attributes:
        losses: held-out loss of each candidate: ``start``, ``blocks``, ``end`` and ``average``.
        kept: the candidate with the lowest loss.
        end_to_end: result of the end-to-end part; None without steps.
    """

    losses: dict[str, float]
    kept: str
    end_to_end: TrainingOutcome | None


class Finetuning:
    """One run of stage 2 on a calibrated graph, which is changed in place."""

    def __init__(
        self,
        quantized: fx.GraphModule,
        reference: fx.GraphModule,
        batches: BlockBatches,
        held_out: HeldOut,
        saved: SavedStates,
        nodes: Sequence[fx.Node] | None = None,
    ) -> None:
        """Collect the inputs of the stage.

        Args:
            quantized: calibrated graph.
            reference: the same graph with its quantizers switched off.
            batches: network inputs for the blocks.
            held_out: clips that choose between the candidates.
            saved: saved states, so that a run can be resumed.
            nodes: nodes whose quantizers and layers are trained; None for all. See `trainable_part`.
        """
        self.quantized, self.reference, self.batches = quantized, reference, batches
        self.held_out, self.saved, self.nodes = held_out, saved, nodes
        self.magnitudes = output_magnitudes(quantized, batches.sequences[0])

    def run(
        self,
        blocks: BlockSettings,
        source: BatchSource,
        loss: IdcLoss,
        end_to_end: TrainingSettings,
        advance: Callable[[], None] = lambda: None,
    ) -> FinetuneOutcome:
        """Run all parts and keep the best candidate.

        Args:
            blocks: settings of the block-by-block part.
            source: source of end-to-end batches.
            loss: loss of the end-to-end part.
            end_to_end: settings of the end-to-end part.
            advance: called after each training step.

        Raises:
            CalibrationError: a loss became NaN or infinite.
        """
        came_in = copy.deepcopy(self.quantized.state_dict())
        losses = {START: self.held_out(self.quantized)}
        if blocks.steps:
            losses[BLOCKS] = self._train_blocks(blocks, advance)
        outcome, last = None, BLOCKS if blocks.steps else START
        if end_to_end.steps:
            outcome = self._train_end_to_end(source, loss, end_to_end, advance)
            losses |= {name: value for name, value in outcome.losses.items() if name != START}
            last = outcome.kept if outcome.improved else last
        # The graph holds the last candidate that was kept. The loss of one network differs in its last digits
        # between a trained graph and a settled one, so that a minimum over all could name another.
        kept = last if math.isfinite(losses[last]) and not losses[START] <= losses[last] else START
        if kept == START:
            self.quantized.load_state_dict(came_in)
        return FinetuneOutcome(losses, kept, outcome)

    def _train_blocks(self, settings: BlockSettings, advance: Callable[[], None]) -> float:
        """Train the blocks and return the held-out loss."""
        state = self.saved.load("blocks")
        done = 0
        if state is not None:
            done = state["done"]
            self.quantized.load_state_dict(state["graph"])
            for _ in range(done * settings.steps):
                advance()

        def keep(count: int) -> None:
            self.saved.save("blocks", {"done": count, "graph": self.quantized.state_dict()})

        reconstruct_blocks(
            self.quantized,
            self.reference,
            self.batches,
            self.magnitudes,
            settings,
            nodes=self.nodes,
            done=done,
            advance=advance,
            after_block=keep,
        )
        # Each block was fitted to the errors of the blocks before it. Refit scales and biases after the last.
        refit = CorrectionSettings(Rounding.KEPT, seed=settings.seed, memory=settings.memory)
        correct_layers(self.reference, self.quantized, self.batches.sequences, refit)
        loss = self.held_out(self.quantized)
        if not math.isfinite(loss):
            raise CalibrationError(
                "fine-tuning: the embeddings are NaN or infinite after the blocks; "
                "lower the learning rates in finetune"
            )
        return loss

    def _train_end_to_end(
        self,
        source: BatchSource,
        loss: IdcLoss,
        settings: TrainingSettings,
        advance: Callable[[], None],
    ) -> TrainingOutcome:
        """Train end to end, and keep the network before it, after it, or the average."""
        trained = TrainedGraph(self.quantized, self.reference, self.magnitudes, WeightMode.LATENT, self.nodes)
        device = self.held_out.device
        training = EmbeddingTraining(trained, self.reference, source, loss, settings, device)
        state: dict[str, Any] | None = self.saved.load("end-to-end")
        if state is not None:
            training.load(state)
            for _ in range(training.progress.step):
                advance()

        def keep(step: int) -> None:
            if step % SAVE_EVERY == 0:
                self.saved.save("end-to-end", training.state())

        training.run(advance, keep)
        outcome = training.keep_best(self.held_out)
        if outcome.improved:
            trained.settle()
        else:
            trained.discard()
        return outcome
