"""Estimates before a run: the size of the file and the time of the stages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from qgait_ptq.capture.captured import Capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.placement.layers import LayerPlan
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.report.terminal import duration
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import State
from qgait_ptq.system.progress import Advance, Progress
from qgait_ptq.targets.target import Target

INT4_BITS, FLOAT_BITS = 4, 32
GRAPH_BYTES, LAYER_BYTES = 8_000, 1_500  # nodes, names and metadata of a file
# Time of each stage, in units of one float run over the same frames. Measured with GaitBase-small and
# GaitBase on 2 cores; other machines and networks differ by about half.
RANGES, ROUNDING, LEARNING_STEP, BLOCK_STEP, REFIT = 1.6, 6.0, 5.0, 0.8, 3.6
EXPORT_SECONDS = 15.0
NETWORKS_EVALUATED, SIMULATION = 1.0, 1.5  # float and file in the runtime; the simulation in torch
LONG = 60.0  # seconds of a run whose estimate is worth a line


@dataclass(frozen=True)
class Expectation:
    """Estimates for a run.

    Attributes:
        file_bytes: size of the file in bytes, accurate to a few percent.
        seconds: time of each stage by its name, accurate to a factor of two.
    """

    file_bytes: int
    seconds: dict[str, float]

    @property
    def total_seconds(self) -> float:
        """Return the time of all stages together."""
        return sum(self.seconds.values())

    @property
    def time_line(self) -> str:
        """Return a line with the time of all stages."""
        stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.seconds.items())
        return (
            f"estimated time on this machine: {duration(self.total_seconds)} ({stages}); the real time can "
            "be half or twice that"
        )


class ExpectTime(Stage):
    """Say how long the run will take, if it is long. The estimate is not part of the result."""

    name = "estimate"

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Return the state unchanged."""
        return state

    def run(self, state: State, progress: Progress) -> State:
        """Note the estimate for a run of more than a minute."""
        config, device, data = state.config, state.device, state.data
        sequences = len(data.calibration), len(data.test)
        expected = expect(
            config, state.captured, state.network, state.layers, state.target, sequences, device
        )
        if expected.total_seconds >= LONG:
            progress.note(expected.time_line)
        return state


def expect(
    config: QuantConfig,
    captured: Capture,
    network: fx.GraphModule,
    layers: Sequence[LayerPlan],
    target: Target,
    sequences: tuple[int, int],
    device: torch.device,
) -> Expectation:
    """Estimate the file size and the time of all stages from one timed run of the network.

    Args:
        config: settings of the run.
        captured: capture of the network.
        network: float graph with annotations.
        layers: layers of the graph.
        target: target of the file.
        sequences: numbers of calibration sequences and of test sequences.
        device: device of the run.
    """
    frame = _seconds_of_a_frame(captured, network, device)
    calibrating = min(config.calibration_sequences, sequences[0])
    seconds = {
        "ranges": RANGES * calibrating * config.calibration_frames * frame,
        "rounding": ROUNDING * calibrating * config.correction_frames * frame,
    }
    idc, finetune = config.idc, config.finetune
    if idc.enabled is not False:
        seconds["IDC"] = LEARNING_STEP * idc.steps * idc.identities * idc.sequences * idc.batch_frames * frame
    if finetune.enabled:
        blocks = sum(layer.weight_bits is not None for layer in layers)
        block_frames = finetune.block_steps * idc.identities * config.correction_frames
        labelled = finetune.steps // finetune.labelled_every if finetune.labelled_every else 0
        step_frames = (finetune.steps - labelled) * finetune.clips * finetune.frames
        step_frames += labelled * idc.identities * idc.sequences * finetune.frames
        seconds["fine-tuning"] = frame * (LEARNING_STEP * step_frames + BLOCK_STEP * blocks * block_frames)
        refit = min(finetune.refit, finetune.unlabelled)
        seconds["refit"] = REFIT * refit * config.correction_frames * frame
    seconds["export"] = EXPORT_SECONDS
    networks = NETWORKS_EVALUATED + SIMULATION * config.evaluate_simulation
    seconds["evaluation"] = networks * sequences[1] * config.calibration_frames * frame
    return Expectation(expected_bytes(layers, target), seconds)


def expected_bytes(layers: Iterable[LayerPlan], target: Target) -> int:
    """Return the estimated size of the file in bytes: stored weights, nodes and scales."""
    weights = {layer.weight: layer for layer in layers}.values()
    stored = sum(layer.parameters * _stored_bits(layer.weight_bits, target) / 8 for layer in weights)
    return round(stored) + GRAPH_BYTES + LAYER_BYTES * len(weights)


def _stored_bits(bits: int | None, target: Target) -> int:
    if bits is None:
        return FLOAT_BITS
    return INT4_BITS if target.storage.int4_weights and bits <= INT4_BITS else 8


def _seconds_of_a_frame(captured: Capture, network: fx.GraphModule, device: torch.device) -> float:
    """Return the time of one run by the number of its frames, which is the nearest that the network takes."""
    example = captured.example(sequences=1, length=REPORTED_FRAMES).to(device)
    with torch.inference_mode():
        network.to(device)(example)
        started = time.perf_counter()
        network(example)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / example.shape[1]
