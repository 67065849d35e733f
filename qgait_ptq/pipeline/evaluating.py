"""The last stages: embeddings of the test sequences, what they are worth, and the speed of the file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qgait_ptq.evaluation.accuracy import accuracy_of, agreement_of, comparison_of
from qgait_ptq.evaluation.benchmark import compare_speed
from qgait_ptq.evaluation.workload import BenchmarkSetting
from qgait_ptq.gait.embedding import Embed, embed_dataset
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import State
from qgait_ptq.system.progress import Advance

SPEED_ROUNDS, SPEED_SECONDS = 5, 0.05


class Evaluate(Stage):
    """Embed the test sequences with the float network, the simulation and the file, and judge them."""

    name = "evaluation"

    def steps(self, state: State) -> int:
        """One for each sequence."""
        return len(state.given.test)

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Give ``embeddings``; record ``accuracy``, ``comparison`` and ``agreement``.

        Of the whole network, where only a part of it is captured.

        Raises:
            CalibrationError: ranking has collapsed, or the float network does not rank.
        """
        embeddings = embed_dataset(
            state.given.test,
            [partial(_embed_on, state.device, run) for run in _networks(state)],
            state.given.frame_shape,
            _frames(state),
            advance,
        )
        accuracy = accuracy_of(embeddings, state.given)
        comparison = comparison_of(embeddings, accuracy, state.given, state.config.seed)
        agreement = agreement_of(embeddings, state.config)
        return replace(state, embeddings=tuple(embeddings)).recording(
            accuracy={name: value.to_report() for name, value in accuracy.items()},
            comparison=comparison,
            agreement=agreement,
        )


class MeasureSpeed(Stage):
    """Take a short look at the speed; `qgait-ptq bench` looks longer."""

    name = "speed"

    def wanted(self, state: State) -> bool:
        """Where the file's own runtime is at hand."""
        return state.runtime in state.target.runtimes

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Record ``speed``."""
        file = state.file
        setting = BenchmarkSetting(
            state.runtime, frames=REPORTED_FRAMES, rounds=SPEED_ROUNDS, seconds=SPEED_SECONDS
        )
        models = [file.float_model.SerializeToString(), file.model.SerializeToString()]
        reference, own = compare_speed(models, setting)
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
    """The float network, the simulation and the file, each of the whole network."""
    runs: list[Embed] = [
        state.network,
        state.quantized,
        lambda batch: state.file.run(batch).to(state.device),
    ]
    part = state.submodule
    return runs if part is None else [part.isolated.host, *(part.around(run) for run in runs[1:])]


def _frames(state: State) -> int | None:
    """The frame count that sequences are brought to; None takes all their frames."""
    if state.submodule is not None:
        return state.source.frames
    return state.captured.frames


def _embed_on(device: torch.device, run: Embed, batch: Tensor) -> Tensor:
    return run(batch.to(device))
