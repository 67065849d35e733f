"""The file that agrees with the simulation: dimensions at which it would be wrong are fixed in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import onnx
import torch
from torch import Tensor, fx

from qgait_ptq.capture.captured import Capture
from qgait_ptq.errors import ExportError
from qgait_ptq.exporters.onnx_file import MarkedModel, export_marked, quantized_model
from qgait_ptq.exporters.passes.first_layer_table import FIRST_LAYER_TABLE, LARGEST_KERNEL, layers_in_tables
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.graph.operators import operator_name
from qgait_ptq.graph.places import place_of
from qgait_ptq.pipeline.preparing import pinned_notes
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.exactness import describe_processor
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, as_session_inputs, run_session
from qgait_ptq.runtime.without_telemetry import onnxruntime
from qgait_ptq.stages.state import State
from qgait_ptq.verification.file_bytes import compare_with_reference, name_inputs
from qgait_ptq.verification.parity import find_failing_axes
from qgait_ptq.verification.recording import record
from qgait_ptq.verification.simulation import Simulation
from qgait_ptq.verification.wrong_nodes import find_wrong_node


@dataclass(frozen=True)
class AgreeingFile:
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


@dataclass(frozen=True)
class Fault:
    """What was wrong in a file, so that axes are fixed in the next one.

    Attributes:
        captured: capture with the axes that were free in the wrong file.
        sizes: axes to fix, each with a size (batch, frames) at which the file was wrong.
    """

    captured: Capture
    sizes: Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class Trial:
    """A capture to export, and the faults of earlier files because of which its axes are fixed."""

    captured: Capture
    faults: tuple[Fault, ...] = ()

    def fix(self, sizes: Mapping[int, tuple[int, int]]) -> Trial:
        """Return the trial with more fixed axes, given a size for each at which the file is wrong."""
        return Trial(self.captured.pin(sizes), (*self.faults, Fault(self.captured, sizes)))


def export_agreeing(state: State) -> AgreeingFile:
    """Export the file, with as many free dimensions as possible.

    Raises:
        ExportError: the file is wrong even with fixed batch size and frame count.
    """
    simulation = Simulation.of(state.quantized, state.device)
    trials = [Trial(state.captured)]
    while trials:
        trial = trials.pop(0)
        captured, clips = trial.captured, example_clips(state, trial.captured)
        marked = export_marked(state.quantized, captured, state.target.opset)
        model = quantized_model(marked, state.quantized, state.target, state.takes_bytes)
        session = open_session(model.SerializeToString(), state.runtime, spinning=False)
        failing = find_failing_axes(
            partial(run_session, session), simulation, clips, captured.sizes, state.config.minimum_parity
        )
        if not failing:
            captured, notes = _explain(state, trial)
            return AgreeingFile(captured, marked, model, session, [*notes, *_table_notes(state, model)])
        _refuse_wrong_kernels(state, clips, model, session)
        trials = trials or _next_trials(trial, failing)
    culprit = describe_culprit(state, captured, clips[:1])
    raise ExportError(
        f"the file differs from the simulation even at a fixed batch size and frame count{culprit}"
    )


def _next_trials(trial: Trial, failing: Mapping[int, tuple[int, int]]) -> list[Trial]:
    """Return what to try after a wrong file, in order.

    If sizes of both axes are wrong, one axis alone can be at fault, so each is fixed alone first. The batch
    size comes before the frame count: sequences have many lengths, and few users need batches.

    Args:
        trial: the wrong file.
        failing: axes with a size (batch, frames) at which the file is wrong.
    """
    wrong = {axis: size for axis, size in sorted(failing.items()) if axis in trial.captured.free_axes}
    alone = [{axis: size} for axis, size in wrong.items()] if len(wrong) > 1 else []
    return [trial.fix(sizes) for sizes in (*alone, wrong) if sizes]


def _explain(state: State, trial: Trial) -> tuple[Capture, list[str]]:
    """Return the capture of a right file with the causes of its fixed axes, and notes about them."""
    captured = trial.captured
    for fault in trial.faults:
        captured = _with_causes(state, captured, fault)
    why = f"at another, the file in {state.runtime} differs from the simulation"
    notes = [note for fault in trial.faults for note in pinned_notes(captured, set(fault.sizes), why)]
    return captured, notes


def describe_culprit(state: State, captured: Capture, clips: Tensor) -> str:
    """Return which operator of the float network is wrong in a file, as the end of a sentence; or nothing.

    Args:
        state: state with the float network.
        captured: capture with the axes that are free in the file.
        clips: input at which the file is wrong.
    """
    node = find_wrong_node(state.network, captured, state.target.opset, clips)
    if node is None:
        return ""
    return f": torch's ONNX exporter or onnxruntime computes {_with_place(node)} differently"


def _with_place(node: fx.Node) -> str:
    """Return the name of an operator, with the line of code that calls it, if it is known."""
    place = place_of(node)
    return f"{operator_name(node)} at {place}" if place else operator_name(node)


def _with_causes(state: State, captured: Capture, fault: Fault) -> Capture:
    """Return a capture with the operator that made a file wrong at some sizes, if it can be found."""
    clips = example_clips(state, fault.captured)
    for axis, (batch, frames) in fault.sizes.items():
        node = find_wrong_node(state.network, fault.captured, state.target.opset, clips[:batch, :frames])
        if node is not None:
            cause = f"{_with_place(node)} is written for one size only by torch's ONNX exporter"
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


def example_clips(state: State, captured: Capture) -> Tensor:
    """Return test sequences as a batch ``[n, s, h, w]`` of the largest sizes that captures are checked at."""
    batch, frames = (max(sizes) for sizes in zip(*captured.sizes, strict=True))
    chosen = state.data.test.choose(batch, state.config.seed)
    clips = [network_batch(silhouettes, about, captured.frame_shape, frames) for silhouettes, about in chosen]
    return torch.cat([clips[index % len(clips)] for index in range(batch)])
