"""The calibrating stages in their order, as the configuration says: ranges, corrections, IDC, fine-tuning.

Between placement and export; `pipeline.quantize` runs them, and so do the experiments.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from qgait_ptq.calibration.block_training import BlockSettings, count_blocks
from qgait_ptq.calibration.blocks import Granularity
from qgait_ptq.calibration.clips import Clips
from qgait_ptq.calibration.correction import CorrectionSettings, Rounding, correct_layers
from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.equalization import Equalization, equalize
from qgait_ptq.calibration.finetuning import Finetuning
from qgait_ptq.calibration.idc import calibrate_distances
from qgait_ptq.calibration.ranges import calibrate_ranges
from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.calibration.trained_graph import LearningRates
from qgait_ptq.calibration.training import TrainingData, TrainingSettings, embed_clips
from qgait_ptq.capture.trace import Capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.clips import (
    SMALLEST_IDENTITIES,
    LabelledClips,
    cut_clips,
    split_identities_off,
    usable_identities,
)
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sampling import PKSampler
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.graph.network_input import as_network_input
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.prepare.insert import insert_quantizers
from qgait_ptq.prepare.quantized_layers import quantized_layers
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from qgait_ptq.quantizer.soft import TemperatureSchedule
from qgait_ptq.quantizer.trainable import WeightMode

CLIPS_PER_BATCH = 8  # where labels play no role
EQUALIZATION_BATCHES = 4
SAVED_FACTOR = 3  # activations kept for the backward pass, in sizes of all nodes' outputs
MEGABYTE = 2**20


class StageListener(Protocol):
    """Times stages and tells that they run."""

    def stage(self, name: str, steps: int | None = None) -> AbstractContextManager[Callable[[], None]]:
        """Enter a stage; the function given is called after each of its steps."""
        ...

    def note(self, text: str) -> None:
        """Say one line that the user should know."""
        ...


@dataclass
class CalibrationRun:
    """The calibrating stages of one network.

    Attributes:
        config: what is done.
        captured: the network's capture.
        network: the simplified, equalized and annotated float graph, on the device.
        device: where it runs.
        listener: is told what runs.
        work_folder: for the states of fine-tuning; None keeps none.
        resume: go on from the states found there.
        record: what the stages did, for the report.
        equalization_factors: layer → what its output channels were divided by.
        accept: says whether what IDC and fine-tuning made of the graph may be kept; None keeps it.
    """

    config: QuantConfig
    captured: Capture
    network: fx.GraphModule
    device: torch.device
    listener: StageListener
    work_folder: Path | None = None
    resume: bool = False
    record: dict[str, Any] = field(default_factory=dict)
    equalization_factors: dict[str, list[float]] = field(default_factory=dict)
    accept: Callable[[fx.GraphModule], bool] | None = None

    def run(self, data: GaitDataset) -> fx.GraphModule:
        """Calibrate on sequences; gives the quantized graph.

        Raises:
            CalibrationError: values that are not finite, or no sequence.
            DataError: sequences of different sizes, or a stage that was asked for lacks identities.
        """
        chosen = data.choose(self.config.calibration_sequences, self.config.seed)
        training = self.training_data(self.cut(chosen, self.config.idc.frames))
        unlabelled = self.unlabelled_clips(chosen, training)
        quantized, reference = self.run_without_labels(chosen, unlabelled)
        before = copy.deepcopy(quantized.state_dict()) if self.accept else {}
        if training is not None and self.config.idc.enabled is not False:
            self.calibrate_distances(quantized, reference, training)
        if self.config.finetune.enabled:
            self.finetune(quantized, reference, unlabelled, training)
        if self.accept and not self.accept(quantized):
            quantized.load_state_dict(before)
            self.listener.note("what IDC and fine-tuning changed costs held-out rank-1; it is undone")
            self.record["undone_for_rank1"] = True
        return quantized

    def run_without_labels(
        self, chosen: GaitDataset, silhouettes: Tensor
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Equalization, ranges and corrections.

        Args:
            chosen: sequences that ranges are observed on.
            silhouettes: clips for the rest, ``[n, s, h, w]``.

        Returns:
            The quantized graph, and the same graph with its quantizers switched off.
        """
        self.equalize(silhouettes)
        quantized = self.set_ranges(chosen)
        reference = self.float_reference(quantized)
        self.correct(quantized, reference, silhouettes)
        return quantized, reference

    def cut(self, chosen: GaitDataset, frames: int) -> LabelledClips:
        """Clips of a length, or of the one that the network takes."""
        return cut_clips(chosen, self.captured.frames or frames, self.captured.frame_shape, self.config.seed)

    def equalize(self, silhouettes: Tensor) -> None:
        """Scale channels of the float network; it computes what it did."""
        few = self.unlabelled_batches(silhouettes)[:EQUALIZATION_BATCHES]
        with self.listener.stage("equalization"):
            done = equalize(self.network, few, Equalization(self.config.equalization))
        self.record["equalized_groups"] = done.groups
        self.equalization_factors = {name: factor.tolist() for name, factor in done.factors.items()}

    def set_ranges(self, chosen: GaitDataset) -> fx.GraphModule:
        """Stage 0."""
        quantized = insert_quantizers(self.network).to(self.device)
        with self.listener.stage("ranges", len(chosen)) as advance:

            def batches() -> Any:
                for silhouettes, record in chosen:
                    yield network_batch(
                        silhouettes,
                        record,
                        self.captured.frame_shape,
                        self.captured.frames,
                        self.config.calibration_frames,
                    ).to(self.device)
                    advance()

            calibrate_ranges(quantized, batches())
        return quantized

    def unlabelled_clips(self, chosen: GaitDataset, training: TrainingData | None) -> Tensor:
        """Silhouettes ``[n, s, h, w]`` for what needs no labels: none of those that choose later.

        A rounding that has seen the held-out identities would look better on them than it is, and no step of
        a later stage could beat it there.
        """
        clips = self.cut(chosen, self.config.correction_frames)
        if clips.copies:
            self.listener.note(f"{clips.copies} calibration sequences repeat others and are left out")
        if training is None:
            return clips.silhouettes
        return clips.silhouettes[~torch.isin(clips.labels, training.held_out.labels)]

    def float_reference(self, quantized: fx.GraphModule) -> fx.GraphModule:
        """A copy of the graph with its quantizers switched off: same nodes, float values."""
        reference = copy.deepcopy(quantized)
        set_quantizing(reference, False)
        return reference

    @property
    def corrects(self) -> bool:
        """Whether anything is corrected at all."""
        return self.config.rounding != "nearest" or self.config.bias_correction

    def corrections(self) -> CorrectionSettings:
        """How weights are rounded and biases corrected."""
        config = self.config
        return CorrectionSettings(
            Rounding(config.rounding),
            bias=config.bias_correction,
            seed=config.seed,
            memory=config.finetune.memory_mb * MEGABYTE,
        )

    def correct(self, quantized: fx.GraphModule, reference: fx.GraphModule, silhouettes: Tensor) -> None:
        """Compensating rounding and bias correction."""
        if not self.corrects:
            return
        with self.listener.stage("rounding", len(quantized_layers(quantized))) as advance:
            left_alone = correct_layers(
                reference, quantized, self.unlabelled_batches(silhouettes), self.corrections(), advance
            )
        if left_alone:
            self.record["shared_weights"] = left_alone
            self.listener.note(
                f"weights that several layers share are rounded to nearest: {', '.join(left_alone)}"
            )

    def training_data(self, clips: LabelledClips) -> TrainingData | None:
        """Clips to learn from and to choose by; None where labels do not allow it."""
        config = self.config.idc
        wanted = (
            config.enabled is not False
            or (self.config.finetune.enabled and self.config.finetune.steps)
            or self.config.needs_held_out
        )
        if not wanted:
            return None
        usable = len(usable_identities(clips.subjects))
        if usable < SMALLEST_IDENTITIES:
            text = (
                f"the calibration set has {usable} identities with two sequences or more; learning distances "
                f"(IDC) needs {SMALLEST_IDENTITIES}"
            )
            if config.enabled:
                raise DataError(text)
            self.listener.note(f"{text}: that stage is left out")
            self.record["idc"] = {"left_out": text}
            return None
        alone = len(set(clips.subjects)) - usable
        if alone:
            self.listener.note(f"{alone} identities have one sequence only; they play no part in IDC")
        learned, held_out = split_identities_off(clips.subjects, config.held_out, self.config.seed)
        everything = Clips(clips.silhouettes, clips.labels)
        embeddings = embed_clips(self.network, everything, self._batch_size(CLIPS_PER_BATCH), self.device)
        subjects = [clips.subjects[index] for index in learned]
        identities = min(config.identities, len(set(subjects)))
        return TrainingData(
            everything.take(learned),
            embeddings[learned],
            PKSampler(subjects, identities, config.sequences),
            everything.take(held_out),
            embeddings[held_out],
        )

    def calibrate_distances(
        self, quantized: fx.GraphModule, reference: fx.GraphModule, data: TrainingData
    ) -> None:
        """Stage 1."""
        config = self.config.idc
        settings = TrainingSettings(
            steps=config.steps,
            rates=LearningRates(config.learning_rate, config.learning_rate, config.bias_learning_rate),
            temperature=TemperatureSchedule(config.temperature, config.temperature),
            evaluate_every=config.evaluate_every,
            patience=config.patience,
            micro_batch=self.clips_at_once(),
            seed=self.config.seed,
        )
        with self.listener.stage("IDC", config.steps) as advance:
            outcome = calibrate_distances(
                quantized, reference, data, self.loss(), settings, self.device, advance
            )
        if outcome.diverged:
            self.listener.note(f"IDC: the loss became no number at step {outcome.steps}; it stopped there")
        if not outcome.improved:
            self.listener.note("IDC: no step served the held-out identities better; the ranges are kept")
        self.record["idc"] = _describe_training(outcome)

    def finetune(
        self,
        quantized: fx.GraphModule,
        reference: fx.GraphModule,
        silhouettes: Tensor,
        data: TrainingData | None,
    ) -> None:
        """Stage 2."""
        config = self.config.finetune
        blocks = BlockSettings(
            steps=config.block_steps,
            granularity=Granularity(config.granularity),
            weights=WeightMode(config.block_weights),
            rates=LearningRates(config.learning_rate, config.block_learning_rate, config.learning_rate),
            drop_probability=config.drop_probability,
            ranges=config.learn_ranges,
            seed=self.config.seed,
            memory=config.memory_mb * MEGABYTE,
        )
        end_to_end = TrainingSettings(
            steps=config.steps if data else 0,
            rates=LearningRates(config.learning_rate, config.weight_learning_rate, config.learning_rate),
            temperature=TemperatureSchedule(config.temperature_start, config.temperature_end),
            evaluate_every=self.config.idc.evaluate_every,
            patience=config.patience,
            micro_batch=self.clips_at_once(),
            seed=self.config.seed + 1,  # other batches than those of stage 1
        )
        batches = self.unlabelled_batches(silhouettes)
        if self.resume and not (self.work_folder and self.work_folder.is_dir()):
            self.listener.note("nothing to resume: fine-tuning begins anew")
        saved = SavedStates(self.work_folder, self.fingerprint(quantized, silhouettes), self.resume)
        steps = count_blocks(quantized, blocks.granularity) * blocks.steps + end_to_end.steps
        with self.listener.stage("fine-tuning", steps) as advance:
            run = Finetuning(quantized, reference, batches, data, self.loss(), self.device, saved)
            outcome = run.run(blocks, end_to_end, advance)
        if outcome.kept == "start":
            self.listener.note("fine-tuning did not serve the held-out identities better; it is undone")
        self.record["finetune"] = {
            "held_out_loss": {"start": outcome.start, "blocks": outcome.blocks},
            "end_to_end": _describe_training(outcome.end_to_end) if outcome.end_to_end else None,
            "kept": outcome.kept,
        }

    def loss(self) -> IdcLoss:
        """The loss of stage 1 and of the end-to-end part of stage 2."""
        idc = self.config.idc
        return IdcLoss(idc.neg_weight, idc.pos_weight, idc.anchor_weight, idc.neighbour_weight)

    def unlabelled_batches(self, silhouettes: Tensor) -> list[Tensor]:
        """Clips ``[n, s, h, w]`` as network inputs, on the device."""
        parts = silhouettes.split(self._batch_size(CLIPS_PER_BATCH))
        return [as_network_input(part.to(self.device)) for part in parts]

    def _batch_size(self, wanted: int) -> int:
        return self.captured.batch or wanted

    def clips_at_once(self) -> int:
        """How many clips fit into the memory for the backward pass."""
        if self.captured.batch is not None:
            return self.captured.batch
        frames = self.captured.frames or self.config.idc.frames
        shapes = [observed_shape(node) for node in self.network.graph.nodes]
        example = next(shape for shape in shapes if shape is not None)  # the silhouettes, [n, s, h, w]
        bytes_each = (
            4 * sum(math.prod(shape) for shape in shapes if shape) * frames / (example[0] * example[1])
        )
        return max(1, int(self.config.idc.memory_mb * MEGABYTE / (SAVED_FACTOR * bytes_each)))

    def fingerprint(self, quantized: fx.GraphModule, silhouettes: Tensor) -> str:
        """Of everything that decides what comes out of a graph and clips."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for name, value in sorted(quantized.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        digest.update(silhouettes.numpy().tobytes())
        return digest.hexdigest()


def _describe_training(outcome: Any) -> dict[str, Any]:
    return {
        "held_out_loss": {"start": outcome.start, "best": outcome.best},
        "best_step": outcome.best_step,
        "steps": outcome.steps,
        "curve": outcome.curve,
        "diverged": outcome.diverged,
        "kept": outcome.improved,
    }
