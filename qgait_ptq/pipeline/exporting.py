"""The stages after calibration: errors of layers, the file, and its parity with the simulation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial

import onnx
from torch import Tensor

from qgait_ptq.calibration.batches import taken_batches
from qgait_ptq.errors import ExportError
from qgait_ptq.exporters.float_model import float_model
from qgait_ptq.exporters.onnx_file import export_float, export_quantized
from qgait_ptq.graph.frame_counts import ANY_FRAME_COUNT
from qgait_ptq.graph.frame_independence import PROOF_FRAMES, prove_frame_independence
from qgait_ptq.pipeline.agreeing_file import describe_culprit, example_clips, export_agreeing
from qgait_ptq.pipeline.other_runtimes import other_runtimes_note
from qgait_ptq.placement.layers import layer_sqnr, list_layers
from qgait_ptq.reference.proof import prove_exactness
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, as_session_inputs, run_session
from qgait_ptq.runtime.streaming import can_stream
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import File, State
from qgait_ptq.system.progress import Advance
from qgait_ptq.verification.parity import (
    Parity,
    compare_with_simulation,
    layers_without_integer_kernel,
)
from qgait_ptq.verification.simulation import Simulation

PARITY_SEQUENCES, SQNR_SEQUENCES = 50, 8


class MeasureLayers(Stage):
    """Measure the error of each layer."""

    name = "layer errors"

    def steps(self, state: State) -> int:
        """Return the number of sequences."""
        return min(SQNR_SEQUENCES, len(state.data.calibration))

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Record ``sqnr``: the SQNR of each layer's output in dB."""
        few = state.data.calibration.choose(SQNR_SEQUENCES, state.config.seed)
        network = state.network
        quantized = state.quantized
        return state.recording(sqnr=layer_sqnr(network, quantized, taken_batches(state, few, advance)))


class Export(Stage):
    """Export the file. A dimension at which it would be wrong is fixed in the file."""

    name = "export"

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``file``, and ``captured`` with the dimensions that stay free in it.

        Raises:
            ExportError: the file is wrong even with fixed batch size and frame count, or it is too large.
        """
        exported = export_agreeing(state)
        model, session = exported.model, exported.session
        state = replace(state, maybe_captured=exported.captured)
        in_float = float_model(exported.marked.model, state.network) or to_onnx(state, quantized=False)
        state = replace(state, maybe_file=File(model, in_float, session)).noting(*exported.notes)
        streams, notes = _streams(state, model, session)
        return state.noting(*notes).recording(proof=prove_exactness(model).describe(), streams=streams)


class CheckParity(Stage):
    """Compare the file with the simulation on test sequences, and find layers without an integer kernel."""

    name = "parity"

    def steps(self, state: State) -> int:
        """Return the number of sequences."""
        return min(PARITY_SEQUENCES, len(state.data.test))

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Record ``parity`` and ``slow_layers``.

        Raises:
            ExportError: file and simulation do not agree.
        """
        file = state.file
        quantized = state.quantized
        chosen = state.data.test.choose(PARITY_SEQUENCES, state.config.seed)
        try:
            parity = check_parity(state, taken_batches(state, chosen, advance))
        except ExportError as error:
            clips = example_clips(state, state.captured)
            raise ExportError(f"{error}{describe_culprit(state, state.captured, clips)}") from None
        integer = [layer.name for layer in list_layers(quantized) if layer.integer]
        checkable = ONNXRUNTIME in state.target.runtimes
        slow = layers_without_integer_kernel(file.model.SerializeToString(), integer) if checkable else []
        if parity.single_cosine_min < 1:
            state = state.noting(
                "this network amplifies rounding: the lowest cosine between file and simulation is "
                f"{parity.cosine_min:.4f}, of the simulation with itself after rounding errors of float32 "
                f"{parity.single_cosine_min:.4f}"
            )
        if slow:
            state = state.noting(f"no integer kernel in the runtime for: {', '.join(slow)}")
        return state.recording(parity=asdict(parity), slow_layers=slow)


class CheckOtherRuntimes(Stage):
    """Compare the file with the simulation in the other runtimes of the target, on a few clips."""

    name = "other runtimes"

    def wanted(self, state: State) -> bool:
        """Return whether another runtime of the target is installed."""
        return bool(state.other_runtimes)

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Note each runtime that computes something else. The file stays: it is right in `State.runtime`."""
        notes = [other_runtimes_note(state, runtime) for runtime in state.other_runtimes]
        return state.noting(*(note for note in notes if note is not None))


def check_parity(state: State, inputs: Iterable[Tensor]) -> Parity:
    """Compare the exported file with the simulation on inputs of your own.

    Args:
        state: state from `qgait_ptq.export`.
        inputs: batches of network inputs ``[n, s, h, w]``, such as those of `qgait_ptq.gait.network_batch`.

    Raises:
        ExportError: file and simulation do not agree.
    """
    return compare_with_simulation(
        partial(run_session, state.file.session),
        Simulation.of(state.quantized, state.device),
        inputs,
        state.config.minimum_parity,
        judges_spread=state.runtime == ONNXRUNTIME,  # other runtimes round in ways of their own
    )


def to_onnx(state: State, *, quantized: bool = True) -> onnx.ModelProto:
    """Return a network of a state as an ONNX model, without running it.

    `qgait_ptq.export` also compares the model with the simulation, and fixes dimensions at which it is wrong.

    Args:
        state: state from `qgait_ptq.calibrate`; for the float network also from `qgait_ptq.prepare`.
        quantized: False for the float network.

    Raises:
        ExportError: the network cannot be exported.
    """
    if quantized:
        return export_quantized(state.quantized, state.captured, state.target, state.takes_bytes)
    return export_float(state.network, state.captured, state.target.opset)


def check_budget(state: State) -> None:
    """Check that the file is within the budget.

    Raises:
        ExportError: the file is larger, because its size was estimated too low.
    """
    limit = state.config.budget.size_mb if state.config.budget else None
    size = state.file.model.ByteSize()
    if limit is not None and size > limit * 1e6:
        raise ExportError(
            f"the file has {size / 1e6:.4f} MB, more than the budget of {limit:g} MB and more than "
            "estimated; set a slightly smaller budget"
        )


def _streams(state: State, model: onnx.ModelProto, session: Session) -> tuple[bool, list[str]]:
    """Return whether long sequences can be streamed with the same result, and why not where it seems so."""
    captured = state.captured
    any_length = captured.frame_counts == ANY_FRAME_COUNT
    complete = state.submodule is None and any_length and ONNXRUNTIME in state.target.runtimes
    if not complete or not can_stream(
        model, as_session_inputs(example_clips(state, captured).numpy(), session.inputs)
    ):
        return False, []
    examples = [captured.example(1, count).to(state.device) for count in PROOF_FRAMES]
    proof = prove_frame_independence(state.quantized, examples)
    return proof.holds, [] if proof.holds else [f"long sequences are not streamed: {proof.reason}"]
