"""The stages after calibration: errors of layers, the file, and its parity with the simulation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import onnx
import onnxruntime
import torch
from torch import Tensor

from qgait_ptq.calibration.batches import taken_batches
from qgait_ptq.capture.captured import FRAME_AXIS, Capture
from qgait_ptq.errors import ExportError
from qgait_ptq.exporters.float_model import float_model
from qgait_ptq.exporters.onnx_file import (
    MarkedModel,
    export_float,
    export_marked,
    export_quantized,
    quantized_model,
)
from qgait_ptq.exporters.passes.first_layer_table import FIRST_LAYER_TABLE, LARGEST_KERNEL, layers_in_tables
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.graph.frame_counts import ANY_FRAME_COUNT
from qgait_ptq.graph.frame_independence import PROOF_FRAMES, prove_frame_independence
from qgait_ptq.graph.operators import operator_name
from qgait_ptq.graph.places import place_of
from qgait_ptq.pipeline.preparing import pinned_notes
from qgait_ptq.placement.layers import layer_sqnr, list_layers
from qgait_ptq.reference.proof import prove_exactness
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.exactness import describe_processor
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, as_session_inputs, run_session
from qgait_ptq.runtime.streaming import can_stream
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import File, State
from qgait_ptq.system.progress import Advance
from qgait_ptq.verification.file_bytes import compare_with_reference, name_inputs
from qgait_ptq.verification.parity import (
    Parity,
    Simulation,
    compare_with_simulation,
    find_failing_axes,
    layers_without_integer_kernel,
)
from qgait_ptq.verification.recording import record
from qgait_ptq.verification.wrong_nodes import find_wrong_node

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
        exported = _export(state)
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
        parity = check_parity(state, taken_batches(state, chosen, advance))
        integer = [layer.name for layer in list_layers(quantized) if layer.integer]
        checkable = ONNXRUNTIME in state.target.runtimes
        slow = layers_without_integer_kernel(file.model.SerializeToString(), integer) if checkable else []
        if parity.single_cosine_min < 1:
            state = state.noting(
                "this network amplifies rounding: the lowest cosine between file and simulation is "
                f"{parity.cosine_min:.4f}, between the simulation in float32 and in float64 "
                f"{parity.single_cosine_min:.4f}"
            )
        if slow:
            state = state.noting(f"no integer kernel in the runtime for: {', '.join(slow)}")
        return state.recording(parity=asdict(parity), slow_layers=slow)


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


@dataclass(frozen=True)
class _Exported:
    """A file that agrees with the simulation.

    Attributes:
        captured: capture with the dimensions that stay free.
        marked: the model before its markers are lowered.
        model: quantized model.
        session: its session.
        notes: what the user is told.
    """

    captured: Capture
    marked: MarkedModel
    model: onnx.ModelProto
    session: Session
    notes: list[str]


def _export(state: State) -> _Exported:
    """Export the file, with as many free dimensions as possible.

    Raises:
        ExportError: the file is wrong even with fixed batch size and frame count.
    """
    quantized = state.quantized
    captured = state.captured
    simulation, clips = Simulation.of(quantized, state.device), _clips(state, captured)
    notes: list[str] = []
    for _ in range(3):  # as captured, then with one and with both dimensions pinned
        marked = export_marked(quantized, captured, state.target.opset)
        model = quantized_model(marked, quantized, state.target, state.takes_bytes)
        session = open_session(model.SerializeToString(), state.runtime, spinning=False)
        failing = find_failing_axes(
            partial(run_session, session), simulation, clips, captured.sizes, state.config.minimum_parity
        )
        if not failing:
            return _Exported(captured, marked, model, session, [*notes, *_table_notes(state, model)])
        _refuse_wrong_kernels(state, clips, model, session)
        wrong = set(failing) & captured.free_axes
        wrong = {FRAME_AXIS} & wrong or wrong
        if not wrong:
            break
        captured = _with_cause(state, captured, {axis: failing[axis] for axis in wrong}, clips).pin(wrong)
        clips = _clips(state, captured)
        notes += pinned_notes(captured, wrong, "at another, the file differs from the simulation")
    raise ExportError("the file differs from the simulation even at a fixed batch size and frame count")


def _with_cause(
    state: State, captured: Capture, failing: Mapping[int, tuple[int, int]], clips: Tensor
) -> Capture:
    """Return a capture with the operator that makes its file wrong at some sizes, if it can be found.

    Args:
        state: state with the float network.
        captured: capture with the axes that were free in the file.
        failing: axes with a size (batch, frames) at which the file is wrong.
        clips: inputs, at least as large as these sizes.
    """
    for axis, (batch, frames) in failing.items():
        node = find_wrong_node(state.network, captured, state.target.opset, clips[:batch, :frames])
        if node is not None:
            where = f" at {place_of(node)}" if place_of(node) else ""
            cause = f"{operator_name(node)}{where} is written for one size only by torch's ONNX exporter"
            captured = captured.because(axis, cause)
    return captured


def _refuse_wrong_kernels(state: State, clips: Tensor, model: onnx.ModelProto, session: Session) -> None:
    """Check that onnxruntime computes the integers of each layer correctly.

    A wrong kernel explains a difference from the simulation; then no dimension needs to be fixed.

    Raises:
        ExportError: a layer is wrong; the text names it.
    """
    if state.runtime != ONNXRUNTIME or ONNXRUNTIME not in state.target.runtimes:
        return
    feeds = [name_inputs(model, as_session_inputs(clips[:1].numpy(), session.inputs))]
    try:
        recording = record(model, feeds)
    except Exception:  # the file does not run at this size, so there is nothing to compare
        return
    verification = compare_with_reference(model, feeds, recording)
    wrong = next((tensor for tensor in verification.tensors if tensor.differing), None)
    if wrong is not None:
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} computes wrong integers on this processor, "
            f"{describe_processor()}: {wrong.differing} of {wrong.values} bytes of {wrong.node} "
            f"({wrong.operator}) differ from the exact sums; install another version of onnxruntime"
        )


def _table_notes(state: State, model: onnx.ModelProto) -> list[str]:
    """Return a note if the 1-bit input does not make the file faster or smaller."""
    expected = state.config.input_bits == 1 and FIRST_LAYER_TABLE.name in state.target.onnx_passes
    if not expected or layers_in_tables(model.graph):
        return []
    return [
        "input_bits is 1, but no layer is computed by table look-up: that needs a convolution that reads "
        f"the input, has one channel and at most {LARGEST_KERNEL} kernel values (3×3)"
    ]


def _streams(state: State, model: onnx.ModelProto, session: Session) -> tuple[bool, list[str]]:
    """Return whether long sequences can be streamed with the same result, and why not where it seems so."""
    captured = state.captured
    any_length = captured.frame_counts == ANY_FRAME_COUNT
    complete = state.submodule is None and any_length and ONNXRUNTIME in state.target.runtimes
    if not complete or not can_stream(
        model, as_session_inputs(_clips(state, captured).numpy(), session.inputs)
    ):
        return False, []
    examples = [captured.example(1, count).to(state.device) for count in PROOF_FRAMES]
    proof = prove_frame_independence(state.quantized, examples)
    return proof.holds, [] if proof.holds else [f"long sequences are not streamed: {proof.reason}"]


def _clips(state: State, captured: Capture) -> Tensor:
    """Return test sequences as a batch ``[n, s, h, w]`` of the largest sizes that captures are checked at."""
    batch, frames = (max(sizes) for sizes in zip(*captured.sizes, strict=True))
    chosen = state.data.test.choose(batch, state.config.seed)
    clips = [network_batch(silhouettes, about, captured.frame_shape, frames) for silhouettes, about in chosen]
    return torch.cat([clips[index % len(clips)] for index in range(batch)])
