"""Stage 2, fine-tuning: blocks, then end to end with the soft quantizer and the IDC loss.

The temperature rises from 1 to 3 in the end-to-end part. It is 0 (straight-through) before, because a soft
quantizer hinders convergence when used from the start (an observation of the QGait paper). The candidate with
the lowest held-out loss is kept: the input network, the network after the blocks, or the best end-to-end
step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.calibration.block_training import BlockSettings, reconstruct_blocks
from qgait_ptq.calibration.correction import CorrectionSettings, Rounding, correct_layers
from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.calibration.trained_graph import TrainedGraph, output_magnitudes
from qgait_ptq.calibration.training import EmbeddingTraining, TrainingOutcome, TrainingSettings, embed_clips
from qgait_ptq.errors import CalibrationError
from qgait_ptq.quantizer.trainable import WeightMode
from qgait_ptq.stages.training_data import TrainingData


@dataclass(frozen=True)
class FinetuneOutcome:
    """Result of fine-tuning.

    Attributes:
        start: held-out loss of the input network.
        blocks: held-out loss after the blocks; None if none were trained.
        end_to_end: result of the end-to-end part; None without steps or data.
        kept: the candidate that was kept: ``start``, ``blocks`` or ``end_to_end``.
    """

    start: float | None
    blocks: float | None
    end_to_end: TrainingOutcome | None
    kept: str


class Finetuning:
    """One run of stage 2 on a calibrated graph, which is changed in place."""

    def __init__(
        self,
        quantized: fx.GraphModule,
        reference: fx.GraphModule,
        batches: list[Tensor],
        data: TrainingData | None,
        loss: IdcLoss,
        device: torch.device,
        saved: SavedStates,
    ) -> None:
        """Collect the inputs of the stage.

        Args:
            quantized: calibrated graph.
            reference: the same graph with its quantizers switched off.
            batches: silhouettes ``[n, s, h, w]`` for the blocks.
            data: labelled clips for the end-to-end part and for the choice. Without them (None), the blocks
                are kept unconditionally.
            loss: loss of the end-to-end part.
            device: device of both graphs.
            saved: saved states, so that a run can be resumed.
        """
        self.quantized, self.reference, self.batches = quantized, reference, batches
        self.data, self.loss, self.device, self.saved = data, loss, device, saved
        self.magnitudes = output_magnitudes(quantized, batches[0])

    def run(
        self,
        blocks: BlockSettings,
        end_to_end: TrainingSettings,
        advance: Callable[[], None] = lambda: None,
    ) -> FinetuneOutcome:
        """Run both parts and keep the best candidate.

        Args:
            blocks: settings of the block-by-block part.
            end_to_end: settings of the end-to-end part.
            advance: called after each step of either part.

        Raises:
            CalibrationError: a loss became NaN or infinite.
        """
        came_in = copy.deepcopy(self.quantized.state_dict())
        start = self._held_out_loss()
        after_blocks = self._train_blocks(blocks, advance) if blocks.steps else None
        outcome = None
        if self.data is not None and end_to_end.steps:
            outcome = self._train_end_to_end(self.data, end_to_end, advance)
        best = outcome.best if outcome else after_blocks
        kept = "end_to_end" if outcome and outcome.improved else "blocks"
        if start is not None and best is not None and not best < start:
            self.quantized.load_state_dict(came_in)
            kept = "start"
        return FinetuneOutcome(start, after_blocks, outcome, kept)

    def _train_blocks(self, settings: BlockSettings, advance: Callable[[], None]) -> float | None:
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
            done=done,
            advance=advance,
            after_block=keep,
        )
        # Each block was fitted to the errors of the blocks before it. Refit scales and biases after the last.
        refit = CorrectionSettings(Rounding.KEPT, seed=settings.seed, memory=settings.memory)
        correct_layers(self.reference, self.quantized, self.batches, refit)
        loss = self._held_out_loss()
        if loss is not None and not loss < float("inf"):
            raise CalibrationError(
                "fine-tuning: the embeddings are NaN or infinite after the blocks; "
                "lower the learning rates in finetune"
            )
        return loss

    def _train_end_to_end(
        self, data: TrainingData, settings: TrainingSettings, advance: Callable[[], None]
    ) -> TrainingOutcome:
        trained = TrainedGraph(self.quantized, self.reference, self.magnitudes, WeightMode.LATENT)
        training = EmbeddingTraining(trained, data, self.loss, settings, self.device)
        state: dict[str, Any] | None = self.saved.load("end-to-end")
        if state is not None:
            training.load(state)
            for _ in range(training.step):
                advance()
        training.run(advance, lambda: self.saved.save("end-to-end", training.state()))
        if training.outcome.improved:
            trained.settle()
        else:
            trained.discard()
        return training.outcome

    def _held_out_loss(self) -> float | None:
        if self.data is None:
            return None
        held_out, size = self.data.held_out, len(self.batches[0])
        embeddings = embed_clips(self.quantized, held_out, size, self.device)
        labels = held_out.labels.to(self.device)
        return float(self.loss(embeddings, self.data.held_out_embeddings, labels))
