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
from qgait_ptq.targets.target import Target

INT4_BITS, FLOAT_BITS = 4, 32
GRAPH_BYTES, LAYER_BYTES = 8_000, 1_500  # nodes, names and metadata of a file
# Time of each stage, in units of one float run over the same frames. Measured with GaitBase-small and
# GaitBase on 2 cores; other machines and networks differ by about half.
RANGES, ROUNDING, LEARNING_STEP, BLOCK_STEP = 1.6, 6.0, 5.0, 0.8
EXPORT_SECONDS = 15.0
NETWORKS_EVALUATED = 3  # float, simulation, file


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
    """Return the estimated size of the file in bytes: stored weights, nodes and scales."""
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
