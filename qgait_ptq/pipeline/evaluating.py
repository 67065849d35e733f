"""The last stages: embeddings of the test sequences, their accuracy, and the speed of the file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qgait_ptq.evaluation.accuracy import accuracy_of, agreement_of, comparison_of
from qgait_ptq.evaluation.benchmark import QUIET_ENOUGH, compare_speed
from qgait_ptq.evaluation.workload import Setting
from qgait_ptq.gait.embedding import Embed, embed_dataset
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import State
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
    """Measure the speed briefly. `qgait-ptq bench` measures longer."""

    name = "speed"

    def wanted(self, state: State) -> bool:
        """Return whether a runtime of the target is installed."""
        return state.runtime in state.target.runtimes

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Record ``speed``."""
        file = state.file
        setting = Setting(state.runtime, frames=REPORTED_FRAMES, rounds=SPEED_ROUNDS, seconds=SPEED_SECONDS)
        models = [file.float_model.SerializeToString(), file.model.SerializeToString()]
        reference, own = compare_speed(models, setting)
        speed: dict[str, Any] = {
            "runtime": state.runtime,
            "threads": setting.threads,
            "frames": setting.frames,
            "float_ms": reference.cpu_ms[0],
            "onnx_ms": own.cpu_ms[0],
            "faster": list(own.faster),
            "noisy": own.noisy_rounds > QUIET_ENOUGH,
        }
        return state.recording(speed=speed)


def _networks(state: State) -> list[Embed]:
    """Return functions that embed with the float network, the simulation and the file."""
    session = state.file.session
    runs: list[Embed] = [
        state.network,
        state.quantized,
        lambda batch: torch.from_numpy(run_session(session, batch.cpu().numpy())).to(state.device),
    ]
    submodule = state.submodule
    if submodule is None:
        return runs
    return [submodule.isolated.host, *(submodule.around(run) for run in runs[1:])]


def _frames(state: State) -> int | None:
    """Return the frame count that sequences are cut to; None for all frames."""
    if state.submodule is not None:
        return state.source.frames
    return state.captured.frames


def _embed_on(device: torch.device, run: Embed, batch: Tensor) -> Tensor:
    return run(batch.to(device))
