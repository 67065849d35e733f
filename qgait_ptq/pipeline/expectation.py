"""What a run will take, before it runs: the size of the file and the time of the stages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from qgait_ptq.capture.trace import Capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.placement.layers import LayerPlan
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.targets.target import Target

INT4_BITS, FLOAT_BITS = 4, 32
GRAPH_BYTES, LAYER_BYTES = 8_000, 1_500  # of a file's nodes, names and metadata
# Seconds of a stage in runs of the float network over the same frames, as seen with GaitBase-small and
# GaitBase on 2 cores; they differ by half between machines and networks.
RANGES, ROUNDING, LEARNING_STEP, BLOCK_STEP = 1.6, 6.0, 5.0, 0.8
EXPORT_SECONDS = 15.0
NETWORKS_EVALUATED = 3  # float, simulation, file


@dataclass(frozen=True)
class Expectation:
    """What is expected of a run.

    Attributes:
        file_bytes: of the written file, within some percent.
        seconds: stage → seconds, within a factor of two.
    """

    file_bytes: int
    seconds: dict[str, float]

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


def expect(
    config: QuantConfig,
    captured: Capture,
    network: fx.GraphModule,
    layers: Sequence[LayerPlan],
    target: Target,
    sequences: tuple[int, int],
    device: torch.device,
) -> Expectation:
    """Expect from one run of the network how long all stages take.

    Args:
        config: what is done.
        captured: the network's capture.
        network: the planned float graph.
        layers: of it.
        target: of the file.
        sequences: how many there are to calibrate with, and to test with.
        device: where it runs.
    """
    frame = _seconds_of_frames(captured, network, device) / REPORTED_FRAMES
    calibrating = min(config.calibration_sequences, sequences[0])
    seconds = {
        "ranges": RANGES * calibrating * config.calibration_frames * frame,
        "rounding": ROUNDING * calibrating * config.correction_frames * frame,
    }
    idc, finetune = config.idc, config.finetune
    step = LEARNING_STEP * idc.identities * idc.sequences * idc.frames * frame
    if idc.enabled is not False:
        seconds["IDC"] = idc.steps * step
    if finetune.enabled:
        blocks = sum(layer.weight_bits is not None for layer in layers)
        seconds["fine-tuning"] = finetune.steps * step + (
            BLOCK_STEP * blocks * finetune.block_steps * idc.identities * config.correction_frames * frame
        )
    seconds["export"] = EXPORT_SECONDS
    seconds["evaluation"] = NETWORKS_EVALUATED * sequences[1] * config.calibration_frames * frame
    return Expectation(expected_bytes(layers, target), seconds)


def expected_bytes(layers: Iterable[LayerPlan], target: Target) -> int:
    """Bytes of the file: weights as they are stored, and what nodes and scales take."""
    weights = {layer.weight: layer for layer in layers}.values()
    stored = sum(layer.parameters * _stored_bits(layer.weight_bits, target) / 8 for layer in weights)
    return round(stored) + GRAPH_BYTES + LAYER_BYTES * len(weights)


def _stored_bits(bits: int | None, target: Target) -> int:
    if bits is None:
        return FLOAT_BITS
    return INT4_BITS if target.storage.int4_weights and bits <= INT4_BITS else 8


def _seconds_of_frames(captured: Capture, network: fx.GraphModule, device: torch.device) -> float:
    example = captured.example(sequences=1, length=REPORTED_FRAMES).to(device)
    with torch.inference_mode():
        network.to(device)(example)
        started = time.perf_counter()
        network(example)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - started
