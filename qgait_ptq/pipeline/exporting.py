"""The stages behind calibration: errors of layers, the file, and its parity with the simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial

import onnx
import onnxruntime
import torch
from torch import Tensor

from qgait_ptq.capture.trace import FRAME_AXIS, Capture
from qgait_ptq.errors import ExportError
from qgait_ptq.exporters.onnx_file import export_float, export_quantized
from qgait_ptq.exporters.passes.first_layer_table import FIRST_LAYER_TABLE, LARGEST_KERNEL, layers_in_tables
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.graph.frame_independence import PROOF_FRAMES, prove_frame_independence
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
    Simulation,
    compare_with_simulation,
    find_failing_axes,
    layers_without_integer_kernel,
)
from qgait_ptq.verification.recording import record

PARITY_SEQUENCES, SQNR_SEQUENCES = 50, 8


class MeasureLayers(Stage):
    """Say how large the error of each layer is."""

    name = "layer errors"

    def steps(self, state: State) -> int:
        """One for each sequence."""
        return min(SQNR_SEQUENCES, len(state.data.calibration))

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Record ``sqnr``: layer → dB."""
        few = state.data.calibration.choose(SQNR_SEQUENCES, state.config.seed)
        network = state.network
        quantized = state.quantized
        return state.recording(sqnr=layer_sqnr(network, quantized, batches(state, few, advance)))


class Export(Stage):
    """Write the model for the runtime, right at every size that it declares; what it is not is pinned."""

    name = "export"

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Give ``file``, and ``captured`` with the sizes that are free in it.

        Raises:
            ExportError: it is wrong even where batch size and frame count are fixed, or too large.
        """
        captured, model, session, notes = _export(state)
        float_model = export_float(state.network, captured, state.target.opset)
        file = File(model, float_model, session)
        state = replace(state, maybe_captured=captured, maybe_file=file).noting(*notes)
        streams, notes = _streams(state, model, session)
        return state.noting(*notes).recording(proof=prove_exactness(model).describe(), streams=streams)


class CheckParity(Stage):
    """Compare the file with the simulation on test sequences, and look for layers in float."""

    name = "parity"

    def steps(self, state: State) -> int:
        """One for each sequence."""
        return min(PARITY_SEQUENCES, len(state.data.test))

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Record ``parity`` and ``slow_layers``.

        Raises:
            ExportError: they do not agree.
        """
        file = state.file
        quantized = state.quantized
        chosen = state.data.test.choose(PARITY_SEQUENCES, state.config.seed)
        parity = compare_with_simulation(
            partial(run_session, file.session),
            Simulation.of(quantized, state.device),
            batches(state, chosen, advance),
            state.config.minimum_parity,
        )
        integer = [layer.name for layer in list_layers(quantized) if layer.integer]
        look = ONNXRUNTIME in state.target.runtimes
        slow = layers_without_integer_kernel(file.model.SerializeToString(), integer) if look else []
        if parity.single_cosine_min < 1:
            state = state.noting(
                f"this network amplifies rounding: file and simulation agree by a cosine of "
                f"{parity.cosine_min:.4f} at worst, the simulation in float32 and in float64 by "
                f"{parity.single_cosine_min:.4f}"
            )
        if slow:
            state = state.noting(f"no integer kernel in the runtime for: {', '.join(slow)}")
        return state.recording(parity=asdict(parity), slow_layers=slow)


def batches(state: State, data: GaitDataset, advance: Advance = nothing) -> Iterator[Tensor]:
    """Sequences as batches of one, on the device, of at most the configured frames."""
    captured = state.captured
    for silhouettes, about in data:
        yield network_batch(
            silhouettes, about, captured.frame_shape, captured.frames, state.config.calibration_frames
        ).to(state.device)
        advance()


def check_budget(state: State) -> None:
    """Check that the file is as small as was asked for.

    Raises:
        ExportError: it is not: sizes were estimated too low.
    """
    limit = state.config.budget.size_mb if state.config.budget else None
    size = state.file.model.ByteSize()
    if limit is not None and size > limit * 1e6:
        raise ExportError(
            f"the file has {size / 1e6:.4f} MB, more than the budget of {limit:g} MB and more than "
            "estimated; ask for a slightly smaller file"
        )


def _export(state: State) -> tuple[Capture, onnx.ModelProto, Session, list[str]]:
    """The capture with the sizes that the file is right at, the file, its session, and what to tell."""
    quantized = state.quantized
    captured = state.captured
    simulation, clips = Simulation.of(quantized, state.device), _clips(state, captured)
    notes: list[str] = []
    for _ in range(3):  # as captured, then with one and with both dimensions pinned
        model = export_quantized(quantized, captured, state.target, state.takes_bytes)
        session = open_session(model.SerializeToString(), state.runtime, spinning=False)
        failing = find_failing_axes(
            partial(run_session, session), simulation, clips, captured.sizes, state.config.minimum_parity
        )
        if not failing:
            return captured, model, session, [*notes, *_table_notes(state, model)]
        _refuse_wrong_kernels(state, clips, model, session)
        wrong = failing & captured.free_axes
        wrong = {FRAME_AXIS} & wrong or wrong
        if not wrong:
            break
        captured = captured.pin(wrong)
        clips = _clips(state, captured)
        notes += pinned_notes(captured, wrong, "the file would be wrong at another")
    raise ExportError("the file differs from the simulation even where its batch and frames are fixed")


def _refuse_wrong_kernels(state: State, clips: Tensor, model: onnx.ModelProto, session: Session) -> None:
    """Name the layer whose integers onnxruntime computes wrong: no size of the input is to blame then.

    Raises:
        ExportError: there is one.
    """
    if state.runtime != ONNXRUNTIME or ONNXRUNTIME not in state.target.runtimes:
        return
    feeds = [name_inputs(model, as_session_inputs(clips[:1].numpy(), session.inputs))]
    verification = compare_with_reference(model, feeds, record(model, feeds))
    wrong = next((tensor for tensor in verification.tensors if tensor.differing), None)
    if wrong is not None:
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} computes wrong integers on this processor, "
            f"{describe_processor()}: {wrong.differing} of {wrong.values} bytes of {wrong.node} "
            f"({wrong.operator}) differ from the exact sums; use another version of onnxruntime"
        )


def _table_notes(state: State, model: onnx.ModelProto) -> list[str]:
    """Say where a bit was spared for nothing."""
    wanted = state.config.input_bits == 1 and FIRST_LAYER_TABLE.name in state.target.onnx_passes
    if not wanted or layers_in_tables(model.graph):
        return []
    return [
        "input_bits is 1, but no layer is looked up in a table: none that reads the input is a convolution "
        f"of one channel with at most {LARGEST_KERNEL} values (3×3)"
    ]


def _streams(state: State, model: onnx.ModelProto, session: Session) -> tuple[bool, list[str]]:
    """Return whether long sequences can be streamed with the same result, and why not where it seems so."""
    captured = state.captured
    whole = state.submodule is None and captured.frames is None and ONNXRUNTIME in state.target.runtimes
    if not whole or not can_stream(model, as_session_inputs(_clips(state, captured).numpy(), session.inputs)):
        return False, []
    examples = [captured.example(1, count).to(state.device) for count in PROOF_FRAMES]
    proof = prove_frame_independence(state.quantized, examples)
    return proof.holds, [] if proof.holds else [f"long sequences are not streamed: {proof.reason}"]


def _clips(state: State, captured: Capture) -> Tensor:
    """Test sequences as a batch ``[n, s, h, w]`` of the largest sizes that captures are checked at."""
    batch, frames = (max(sizes) for sizes in zip(*captured.sizes, strict=True))
    chosen = state.data.test.choose(batch, state.config.seed)
    clips = [network_batch(silhouettes, about, captured.frame_shape, frames) for silhouettes, about in chosen]
    return torch.cat([clips[index % len(clips)] for index in range(batch)])
