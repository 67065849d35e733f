"""The last stages: embeddings of the test sequences, their accuracy, and the speed of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qgait_ptq.errors import DataError
from qgait_ptq.evaluation.accuracy import accuracy_of, agreement_of, comparison_of
from qgait_ptq.evaluation.benchmark import compare_speed
from qgait_ptq.evaluation.workload import BenchmarkSetting
from qgait_ptq.gait.data.content import digest_of_tests
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.gait.embedding import embed_taken
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.pipeline.evaluated_networks import networks_to_evaluate
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import State
from qgait_ptq.system.exchanging import first_only
from qgait_ptq.system.invariants import present
from qgait_ptq.system.progress import Advance

SPEED_ROUNDS, SPEED_SECONDS = 5, 0.05


class Evaluate(Stage):
    """Embed the test sequences with the float network and the file, and measure accuracy."""

    name = "evaluation"

    def steps(self, state: State) -> int:
        """Return the number of test sequences."""
        return len(state.given.test)

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``embeddings``; record ``accuracy``, ``comparison``, ``agreement`` and others.

        The simulation is embedded only if the configuration asks for it: `CheckParity` has shown that the
        file computes the same. If only a submodule is captured, the embeddings are those of the whole
        network.

        Raises:
            CalibrationError: the ranking has collapsed, or the float network does not rank.
        """
        evaluated = networks_to_evaluate(state)
        networks = evaluated.networks
        embedded = embed_taken(
            state.given.test,
            list(networks.values()),
            state.given.frame_shape,
            state.source.frames,
            advance,
            batches=state.submodule is None and state.captured.batch is None,
            threads=evaluated.at_once,
        )
        embeddings = dict(zip(networks, embedded.embeddings, strict=True))
        data, unranked = _left(state.given, embedded.kept)
        accuracy = accuracy_of(embeddings, data)
        comparison = comparison_of(embeddings, accuracy, data, state.config.seed)
        agreement = agreement_of(embeddings, state.config)
        if embedded.refused:
            state = state.noting(
                f"{len(embedded.refused)} of {len(state.given.test)} test sequences are left out of the "
                f"evaluation, and the file refuses them: {embedded.refused[0]}"
            )
        if unranked:
            state = state.noting(unranked)
        # With a submodule, the frame counts of the capture are those of the submodule.
        whole = state.submodule is None and state.source.frames is None
        counts = state.captured.frame_counts if whole else FrameCounts.exactly(state.source.frames)
        if note := counts.changed_note(embedded.lengths):
            state = state.noting(note)
        if data.test_set and (note := present(state.given.test_set).missing_note(data.test_set)):
            state = state.noting(note)
        own = data if state.data is state.given else state.data
        simulated = len(embedded.kept) if "quantized" in networks else state.record["parity"]["sequences"]
        return replace(state, given=data, data=own, embeddings=embeddings).recording(
            accuracy={name: value.to_report() for name, value in accuracy.items()},
            comparison=comparison,
            agreement=agreement,
            evaluation={"float_runtime": evaluated.float_runtime, "simulated_sequences": simulated},
            test_content=digest_of_tests(data.test.records, embedded.digests, data.test_set),
        )


def _left(data: GaitData, kept: Sequence[int]) -> tuple[GaitData, str]:
    """Return the data with the embedded test sequences, and a note if no ranking is left.

    The file is made by now, so that the agreement is measured instead of ending the run.
    """
    try:
        return data.with_test(kept), ""
    except DataError as error:
        note = f"the accuracy is not measured, only the agreement: {error}"
        return replace(data, test_set=None).with_test(kept), note


class MeasureSpeed(Stage):
    """Measure the speed briefly. `qgait-ptq bench` measures longer."""

    name = "speed"

    def wanted(self, state: State) -> bool:
        """Return whether a runtime of the target is installed."""
        return state.runtime in state.target.runtimes

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Record ``speed``."""
        file = state.file
        frames = state.captured.frame_counts.nearest(REPORTED_FRAMES)
        setting = BenchmarkSetting(state.runtime, frames=frames, rounds=SPEED_ROUNDS, seconds=SPEED_SECONDS)
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
