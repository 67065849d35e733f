"""The stages that learn: IDC, and fine-tuning with the frames that it learns from."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from torch import fx

from qgait_ptq.calibration.batches import MEGABYTE, clips_at_once
from qgait_ptq.calibration.block_training import BlockSettings, count_blocks
from qgait_ptq.calibration.blocks import Granularity
from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.finetuning import Finetuning
from qgait_ptq.calibration.idc import calibrate_distances
from qgait_ptq.calibration.learning_batches import (
    block_batches,
    end_to_end_batches,
    frames_are_independent,
    labelled_batches,
)
from qgait_ptq.calibration.pool import FEW_SEQUENCES, collect_pool, held_out_identities, judge, pool_records
from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.calibration.trainable_part import TrainablePart, anchor_loss, find_trainable_part
from qgait_ptq.calibration.trained_graph import LearningRates
from qgait_ptq.calibration.training import TrainingOutcome, TrainingSettings
from qgait_ptq.calibration.training_batches import (
    BatchSource,
)
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.quantizer.soft import TemperatureSchedule
from qgait_ptq.quantizer.trainable import WeightMode
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import State
from qgait_ptq.system.invariants import present
from qgait_ptq.system.progress import Advance


class CalibrateDistances(Stage):
    """Stage 1, IDC: train ranges and biases so that distances between people match the float network."""

    name = "IDC"

    def wanted(self, state: State) -> bool:
        """Return whether there are enough labels and IDC is not disabled."""
        return state.training is not None and state.config.idc.enabled is not False

    def steps(self, state: State) -> int:
        """Return the number of training steps."""
        return state.config.idc.steps

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Replace ``quantized``, and record ``idc``."""
        config = state.config.idc
        settings = TrainingSettings(
            steps=config.steps,
            rates=LearningRates(config.learning_rate, config.learning_rate, config.bias_learning_rate),
            temperature=TemperatureSchedule(config.temperature, config.temperature),
            averaged=config.averaged,
            micro_batch=clips_at_once(state, config.batch_frames),
            fixed_batch=state.captured.batch is not None,
            seed=state.config.seed,
        )
        quantized, reference = _copies(state)
        loss = idc_loss(state)
        held_out = present(held_out_identities(state, loss, clips_at_once(state)))
        batches = labelled_batches(state, config.batch_frames, consecutive=not frames_are_independent(state))
        part = _trainable_part(state, quantized, reference, batches, settings.micro_batch)
        if part.jumps:
            state = state.noting(part.describe("IDC"))
        outcome = calibrate_distances(
            quantized, reference, batches, held_out, loss, settings, advance, part.nodes
        )
        if outcome.diverged:
            text = f"IDC: the loss became NaN or infinite at step {outcome.steps}; stopped there"
            state = state.noting(text)
        if not outcome.improved:
            state = state.noting("IDC did not improve the held-out identities; the ranges are kept")
        return replace(state, maybe_quantized=quantized).recording(
            idc=_describe_training(outcome) | _describe_part(part)
        )


class CollectFrames(Stage):
    """Read frames of many sequences for fine-tuning."""

    name = "frame pool"

    def wanted(self, state: State) -> bool:
        """Return whether fine-tuning is enabled."""
        return state.config.finetune.enabled

    def steps(self, state: State) -> int:
        """Return the number of sequences."""
        return len(pool_records(state).data)

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``pool``.

        Raises:
            DataError: a sequence has another frame size than the network takes, or cannot be read.
        """
        records = pool_records(state)
        pool = collect_pool(state, records, advance)
        if records.left_out:
            state = state.noting(
                f"fine-tuning leaves out {records.left_out} sequences of --unlabelled, which are also test "
                "sequences or held-out ones"
            )
        if records.unused:
            state = state.noting(
                f"fine-tuning does not use {records.unused} sequences of --unlabelled: it learns from at "
                f"most {state.config.finetune.unlabelled} sequences, and takes training sequences first; "
                "raise finetune.unlabelled"
            )
        if len(pool) == 1:
            state = state.noting("fine-tuning is judged by the only sequence that it learns from")
        if len(pool) < FEW_SEQUENCES:
            state = state.noting(
                f"fine-tuning has {len(pool)} sequences; fewer than {FEW_SEQUENCES} are easily overfitted. "
                "More can be passed without labels (--unlabelled)"
            )
        return replace(state, maybe_pool=pool)


class Finetune(Stage):
    """Stage 2: blocks, then end to end with the soft quantizer."""

    name = "fine-tuning"

    def wanted(self, state: State) -> bool:
        """Return whether fine-tuning is enabled."""
        return state.config.finetune.enabled

    def steps(self, state: State) -> int:
        """Return the largest number of training steps."""
        config = state.config.finetune
        blocks = count_blocks(state.quantized, Granularity(config.granularity))
        return blocks * config.block_steps + config.steps

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Replace ``quantized``, and record ``finetune``."""
        if state.resume and not (state.work_folder and state.work_folder.is_dir()):
            state = state.noting("no saved state to resume; fine-tuning starts from the beginning")
        quantized, reference = _copies(state)
        saved = SavedStates(state.work_folder, fingerprint(state), state.resume)
        loss = idc_loss(state)
        pool, held_out = judge(state, loss, clips_at_once(state))
        source = end_to_end_batches(state, pool)
        settings = _end_to_end_settings(state)
        part = _trainable_part(state, quantized, reference, source, settings.micro_batch)
        if part.jumps:
            state = state.noting(part.describe("fine-tuning"))
        batches = block_batches(state, quantized, pool)
        run = Finetuning(quantized, reference, batches, held_out, saved, part.nodes)
        outcome = run.run(
            _block_settings(state.config),
            source,
            loss,
            settings,
            advance,
        )
        if outcome.end_to_end and outcome.end_to_end.diverged:
            stopped = f"the loss became NaN or infinite at step {outcome.end_to_end.steps}; stopped there"
            state = state.noting(f"fine-tuning: {stopped}")
        if outcome.kept == "start":
            state = state.noting("fine-tuning did not improve the held-out clips; reverted")
        return replace(state, maybe_quantized=quantized).recording(
            finetune={
                "held_out_loss": outcome.losses,
                "judged_by": f"held-out {held_out.what}",
                "sequences": len(pool),
                "end_to_end": _describe_training(outcome.end_to_end) if outcome.end_to_end else None,
                "kept": outcome.kept,
                **_describe_part(part),
            }
        )


def idc_loss(state: State) -> IdcLoss:
    """Return the loss of stage 1 and of the end-to-end part of stage 2, by the metric of the data."""
    idc = state.config.idc
    weights = (idc.neg_weight, idc.pos_weight, idc.anchor_weight, idc.neighbour_weight)
    return IdcLoss(*weights, metric=state.data.metric)


def fingerprint(state: State) -> str:
    """Return a digest of version, settings, metric, network, clips with labels, and the pool if there is one.

    The network is that of the capture: its operators, weights and sizes. Results of earlier stages differ in
    their last digits if another number of processes or threads computes them.
    """
    digest = hashlib.sha256(state.config.model_dump_json().encode())
    captured = state.captured
    sizes = (captured.frame_shape, captured.batch, str(captured.frame_counts))
    metric = state.data.metric
    digest.update(f"{version('qgait-ptq')} {metric} {sizes}\n{captured.graph_module.code}".encode())
    for name, value in sorted(captured.graph_module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(state.unlabelled.numpy().tobytes())
    if state.training is not None:
        for clips in (state.training.clips, state.training.held_out):
            digest.update(clips.silhouettes.numpy().tobytes() + clips.labels.numpy().tobytes())
    if state.maybe_pool is not None:
        for start, length in state.pool.stretches:  # a mapped file is not read at once
            digest.update(state.pool.frames[start : start + length].tobytes())
        digest.update(state.pool.labels.tobytes())
    return digest.hexdigest()


def _copies(state: State) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return a copy of the calibrated graph, to be changed, and the float reference."""
    quantized = copy.deepcopy(state.quantized)
    return quantized, state.reference


def _block_settings(config: QuantConfig) -> BlockSettings:
    stage = config.finetune
    return BlockSettings(
        steps=stage.block_steps,
        granularity=Granularity(stage.granularity),
        weights=WeightMode(stage.block_weights),
        rates=LearningRates(stage.learning_rate, stage.block_learning_rate, stage.learning_rate),
        drop_probability=stage.drop_probability,
        ranges=stage.learn_ranges,
        seed=config.seed,
        memory=stage.memory_mb * MEGABYTE,
    )


def _end_to_end_settings(state: State) -> TrainingSettings:
    stage = state.config.finetune
    return TrainingSettings(
        steps=stage.steps,
        rates=LearningRates(stage.learning_rate, stage.weight_learning_rate, stage.learning_rate),
        temperature=TemperatureSchedule(stage.temperature_start, stage.temperature_end),
        averaged=stage.averaged,
        micro_batch=clips_at_once(state, stage.frames),
        fixed_batch=state.captured.batch is not None,
        seed=state.config.seed + 1,  # other batches than those of stage 1
    )


def _trainable_part(
    state: State, quantized: fx.GraphModule, reference: fx.GraphModule, source: BatchSource, at_once: int
) -> TrainablePart:
    """Return the part of the network that the stage trains."""
    loss = anchor_loss(reference, source, state.config.seed, state.device, at_once)
    return find_trainable_part(quantized, loss)


def _describe_part(part: TrainablePart) -> dict[str, Any]:
    return {"trained_layers": part.layers, "of_layers": part.all_layers, "loss_jumps": part.jumps}


def _describe_training(outcome: TrainingOutcome) -> dict[str, Any]:
    return {
        "held_out_loss": dict(outcome.losses),
        "steps": outcome.steps,
        "curve": outcome.curve,
        "diverged": outcome.diverged,
        "kept": outcome.kept,
    }
