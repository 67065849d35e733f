"""The last stages: embeddings of the test sequences, their accuracy, and the speed of the file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qgait_ptq.errors import ProcessorWarning
from qgait_ptq.evaluation.accuracy import accuracy_of, agreement_of, comparison_of
from qgait_ptq.evaluation.benchmark import compare_speed
from qgait_ptq.evaluation.workload import BenchmarkSetting
from qgait_ptq.gait.embedding import Embed, embed_taken
from qgait_ptq.pipeline.float_network import choose_float_network, embed_fitted
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import State
from qgait_ptq.system.exchanging import first_only
from qgait_ptq.system.processes import processes
from qgait_ptq.system.progress import Advance
from qgait_ptq.system.threads import usable_cores

SPEED_ROUNDS, SPEED_SECONDS = 5, 0.05
MOST_AT_ONCE = 4  # calls; each holds the activations of its sequences


class Evaluate(Stage):
    """Embed the test sequences with the float network and the file, and measure accuracy."""

    name = "evaluation"

    def steps(self, state: State) -> int:
        """Return the number of test sequences."""
        return len(state.given.test)

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``embeddings``; record ``accuracy``, ``comparison``, ``agreement`` and ``evaluation``.

        The simulation is embedded only if the configuration asks for it: `CheckParity` has shown that the
        file computes the same. If only a submodule is captured, the embeddings are those of the whole
        network.

        Raises:
            CalibrationError: the ranking has collapsed, or the float network does not rank.
        """
        sharing = _Sharing.of(state)
        reference = choose_float_network(state, sharing.threads_each)
        if reference.runtime != ONNXRUNTIME:
            sharing = _ONE_AT_ONCE
        networks = _networks(state, reference.embed, sharing)
        embedded = embed_taken(
            state.given.test,
            [partial(_embed_on, state.device, run) for run in networks.values()],
            state.given.frame_shape,
            state.source.frames,
            advance,
            batches=state.submodule is None and state.captured.batch is None,
            threads=sharing.at_once,
        )
        embeddings = dict(zip(networks, embedded.embeddings, strict=True))
        data = state.given.with_test(embedded.kept)
        accuracy = accuracy_of(embeddings, data)
        comparison = comparison_of(embeddings, accuracy, data, state.config.seed)
        agreement = agreement_of(embeddings, state.config)
        if embedded.refused:
            state = state.noting(
                f"{len(embedded.refused)} of {len(state.given.test)} test sequences are left out of the "
                f"evaluation, and the file refuses them: {embedded.refused[0]}"
            )
        own = data if state.data is state.given else state.data
        simulated = len(embedded.kept) if "quantized" in networks else state.record["parity"]["sequences"]
        return replace(state, given=data, data=own, embeddings=embeddings).recording(
            accuracy={name: value.to_report() for name, value in accuracy.items()},
            comparison=comparison,
            agreement=agreement,
            evaluation={"float_runtime": reference.runtime, "simulated_sequences": simulated},
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


@dataclass(frozen=True)
class _Sharing:
    """How calls of the networks share the cores. Several calls at once need fewer waits for each other.

    Attributes:
        at_once: number of calls at once.
        threads_each: threads of onnxruntime for each call; None for its default.
    """

    at_once: int
    threads_each: int | None

    @classmethod
    def of(cls, state: State) -> _Sharing:
        """Return several calls at once if onnxruntime is all that runs: torch has threads of its own."""
        in_torch = (
            state.device.type != "cpu" or state.submodule is not None or state.config.evaluate_simulation
        )
        if in_torch or state.runtime != ONNXRUNTIME:
            return _ONE_AT_ONCE
        cores = max(1, usable_cores() // processes().count)
        at_once = min(cores, MOST_AT_ONCE)
        return cls(at_once, cores // at_once)

    def open_file(self, state: State) -> Session:
        """Return a session of the file with its share of the cores."""
        if self.threads_each is None:
            return state.file.session
        with warnings.catch_warnings():  # told when the file was made
            warnings.simplefilter("ignore", ProcessorWarning)
            model = state.file.model.SerializeToString()
            return open_session(model, state.runtime, self.threads_each, spinning=False)


_ONE_AT_ONCE = _Sharing(1, None)


def _networks(state: State, float_network: Embed, sharing: _Sharing) -> dict[str, Embed]:
    """Return the networks to embed with, each as the whole network; the simulation only if it is wanted."""
    runs: dict[str, Embed] = {"quantized": state.quantized} if state.config.evaluate_simulation else {}
    file = replace(state.file, session=sharing.open_file(state))
    runs["onnx"] = lambda batch: file.run(batch).to(state.device)
    taken, counts = state.submodule, state.captured.frame_counts
    whole = {
        name: partial(embed_fitted, counts, run) if taken is None else taken.around(run)
        for name, run in runs.items()
    }
    return {"float": float_network, **whole}


def _embed_on(device: torch.device, run: Embed, batch: Tensor) -> Tensor:
    return run(batch.to(device))
