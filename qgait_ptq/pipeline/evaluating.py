"""The last stages: embeddings of the test sequences, their accuracy, and the speed of the file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qgait_ptq.capture.own_copy import copy_network
from qgait_ptq.capture.trace import embedding_network
from qgait_ptq.evaluation.accuracy import accuracy_of, agreement_of, comparison_of
from qgait_ptq.evaluation.benchmark import compare_speed
from qgait_ptq.evaluation.workload import BenchmarkSetting
from qgait_ptq.gait.embedding import Embed, embed_taken
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.frame_inputs import join_inputs
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import State
from qgait_ptq.system.exchanging import first_only
from qgait_ptq.system.progress import Advance

SPEED_ROUNDS, SPEED_SECONDS = 5, 0.05


class Evaluate(Stage):
    """Embed the test sequences with the float network, the simulation and the file, and measure accuracy."""

    name = "evaluation"

    def steps(self, state: State) -> int:
        """Return the number of test sequences."""
        return len(state.given.test)

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``embeddings``; record ``accuracy``, ``comparison`` and ``agreement``.

        If only a submodule is captured, the embeddings are those of the whole network.

        Raises:
            CalibrationError: the ranking has collapsed, or the float network does not rank.
        """
        embedded = embed_taken(
            state.given.test,
            [partial(_embed_on, state.device, run) for run in _networks(state)],
            state.given.frame_shape,
            state.source.frames,
            advance,
        )
        embeddings, data = embedded.embeddings, state.given.with_test(embedded.kept)
        accuracy = accuracy_of(embeddings, data)
        comparison = comparison_of(embeddings, accuracy, data, state.config.seed)
        agreement = agreement_of(embeddings, state.config)
        if embedded.refused:
            state = state.noting(
                f"{len(embedded.refused)} of {len(state.given.test)} test sequences are left out of the "
                f"evaluation, and the file refuses them: {embedded.refused[0]}"
            )
        own = data if state.data is state.given else state.data
        return replace(state, given=data, data=own, embeddings=tuple(embeddings)).recording(
            accuracy={name: value.to_report() for name, value in accuracy.items()},
            comparison=comparison,
            agreement=agreement,
        )


class MeasureSpeed(Stage):
    """Measure the speed briefly. `qgait-ptq bench` measures longer."""

    name = "speed"

    def wanted(self, state: State) -> bool:
        """Return whether a runtime of the target is installed."""
        return state.runtime in state.target.runtimes

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Record ``speed``."""
        file = state.file
        setting = BenchmarkSetting(
            state.runtime, frames=REPORTED_FRAMES, rounds=SPEED_ROUNDS, seconds=SPEED_SECONDS
        )
        models = [file.float_model.SerializeToString(), file.model.SerializeToString()]
        reference, own = first_only(lambda: compare_speed(models, setting))  # while other processes rest
        speed: dict[str, Any] = {
            "runtime": state.runtime,
            "threads": setting.threads,
            "frames": setting.frames,
            "float_ms": reference.cpu_ms[0],
            "onnx_ms": own.cpu_ms[0],
            "faster": list(own.faster),
            "noisy": own.noisy,
        }
        return state.recording(speed=speed)


def _networks(state: State) -> list[Embed]:
    """Return the user's own network, the simulation and the file, each of the whole network."""
    runs: list[Embed] = [
        state.quantized,
        lambda batch: state.file.run(batch).to(state.device),
    ]
    taken = state.submodule
    if taken is not None:
        return [taken.isolated.host, *(taken.around(run) for run in runs)]
    counts = state.captured.frame_counts
    return [_own_network(state), *(partial(_embed_fitted, counts, run) for run in runs)]


def _own_network(state: State) -> Embed:
    """Return the user's network, in float32 on the device: never our graph of it.

    Where the file takes one frame count only, and the network refuses a sequence, the network gets the frames
    that the file gets.
    """
    captured, source = state.captured, state.source
    network = join_inputs(copy_network(source.model), state.data.layout)
    length = captured.example_frames if captured.frames is None else captured.frames
    network = embedding_network(network, captured.frame_shape, length, source.output)
    place = _place_of(network, captured.example(sequences=1), state.device)

    def embed(batch: Tensor) -> Tensor:
        batch = batch.to(place)
        try:
            embedding: Tensor = network(batch)
        except Exception:
            if captured.frames in (None, batch.shape[1]):
                raise
            embedding = network(batch[:, captured.frame_counts.indices(batch.shape[1])])
        return embedding

    return embed


def _place_of(network: nn.Module, example: Tensor, device: torch.device) -> torch.device:
    """Move a network to the device, or leave it on the CPU where its code makes tensors there."""
    try:
        with torch.inference_mode():
            network.to(device)(example.to(device))
    except RuntimeError:
        device = torch.device("cpu")
        network.to(device)
    return device


def _embed_fitted(counts: FrameCounts, run: Embed, batch: Tensor) -> Tensor:
    """Embed the frames that the file takes of a sequence."""
    length = batch.shape[1]
    return run(batch if counts.takes(length) else batch[:, counts.indices(length)])


def _embed_on(device: torch.device, run: Embed, batch: Tensor) -> Tensor:
    return run(batch.to(device))
