"""The stages before calibration, and the stages that decide by held-out identities."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from qgait_ptq.calibration.learning_stages import CalibrateDistances, CollectFrames, Finetune
from qgait_ptq.calibration.refit_stage import Refit
from qgait_ptq.capture.autocast import disabled_regions
from qgait_ptq.capture.captured import BATCH_AXIS, FRAME_AXIS, Capture
from qgait_ptq.capture.float_types import dropped_conversions
from qgait_ptq.config.goals import unused_widths_notes
from qgait_ptq.errors import ExportError
from qgait_ptq.exporters.exportability import (
    explain_wrong_translation,
    unknown_nodes,
    wrongly_translated_nodes,
)
from qgait_ptq.exporters.onnx_file import export_float
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.graph.frame_counts import ANY_FRAME_COUNT
from qgait_ptq.graph.frame_inputs import largest_integers
from qgait_ptq.mixed_precision.choosing import WidthChooser, allowed_drop, held_out_drop
from qgait_ptq.placement.annotate import annotate
from qgait_ptq.placement.layers import integer_layers
from qgait_ptq.placement.planning import bit_widths, plan, width_notes
from qgait_ptq.placement.submodule_data import submodule_config, take_submodule
from qgait_ptq.placement.totals import count_totals
from qgait_ptq.stages.stage import CompoundStage, Stage, Stopwatch, nothing, run_stages
from qgait_ptq.stages.state import State
from qgait_ptq.system.invariants import present
from qgait_ptq.system.progress import Advance, Progress
from qgait_ptq.verification.kernel_check import check_kernels

CONVERSIONS_HAVE = "conversions to half or double precision have"
LEARNING: tuple[Stage, ...] = (CalibrateDistances(), CollectFrames(), Finetune(), Refit())


class TakeSubmodule(Stage):
    """Take a submodule out of the network. Later stages quantize it, and the rest stays in float."""

    name = "submodule"

    def wanted(self, state: State) -> bool:
        """Return whether a submodule is named."""
        return state.source.submodule is not None

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``submodule``, its ``data`` and its ``config``.

        Raises:
            ConfigError: the network has no such module, or a setting needs the whole network.
            CaptureError: the inputs and outputs of the module cannot be determined.
        """
        source = state.source
        name = present(source.submodule)
        config = submodule_config(state.config)
        taken = take_submodule(source.model, name, state.given, state.device, source.frames, source.output)
        return replace(state, config=config, submodule=taken, data=taken.data).noting(
            f"only {name} is captured and quantized; the rest of the network stays in float"
        )


class CaptureNetwork(Stage):
    """Capture the network as a graph, simplify it, and annotate it."""

    name = "capture"

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``captured`` and ``network``, and the limits of integers in the data.

        Raises:
            CaptureError: the network cannot be captured.
            ConfigError: the configuration names layers that the network does not have.
        """
        source, taken, data = state.source, state.submodule, state.data
        model, frames, output = source.model, source.frames, source.output
        if taken is not None:
            model, frames, output = taken.model, taken.isolated.frames, None
        captured, network, layers = plan(
            model,
            data.frame_shape,
            state.config,
            frames=frames,
            output=output,
            layout=data.layout,
            raw=data.raw,
        )
        pinned = {BATCH_AXIS, FRAME_AXIS} - captured.free_axes - ({FRAME_AXIS} if frames else set())
        notes = [*width_notes(network, layers, state.config), *count_totals(network).notes()]
        notes += pinned_notes(captured, pinned, "the captured graph is wrong at other sizes")
        if captured.frames is None and captured.frame_counts != ANY_FRAME_COUNT:
            notes.append(
                f"the network is captured for {captured.frame_counts}: at other frame counts it computes "
                f"something else, or does not run{_cause(captured, FRAME_AXIS)}. The file is for these"
            )
        host = taken.isolated.host if taken else None
        regions = disabled_regions(host) if host is not None else captured.without_autocast
        conversions = dropped_conversions(host) if host is not None else captured.without_conversions
        notes += [*type_notes("torch.autocast has", regions), *type_notes(CONVERSIONS_HAVE, conversions)]
        limited = data.limited(largest_integers(network))
        given = limited if state.given is state.data else state.given
        return replace(
            state, given=given, data=limited, maybe_captured=captured, maybe_network=network
        ).noting(*notes)


class CheckOperators(Stage):
    """Find operators that cannot be written to the file, before anything is calibrated."""

    name = "operators"

    def wanted(self, state: State) -> bool:
        """Return whether the exporter does not list an operator of the network, or writes it wrongly."""
        return bool(unknown_nodes(state.network) or wrongly_translated_nodes(state.network))

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Return the state as it is.

        Raises:
            ExportError: the float network cannot be exported; the error names the operator and its line.
        """
        wrong = wrongly_translated_nodes(state.network)
        if wrong:
            raise ExportError(explain_wrong_translation(wrong))
        export_float(state.network, state.captured, state.target.opset)
        return state


class CheckKernels(Stage):
    """Run a layer of the network in the runtime on this processor, before calibration."""

    name = "kernels"

    def wanted(self, state: State) -> bool:
        """Return whether a runtime of the target is installed."""
        return state.runtime in state.target.runtimes

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Return the same state.

        Raises:
            ExportError: the runtime computes wrong integers on this processor.
        """
        check_kernels(integer_layers(state.network), state.runtime)
        return state


class ToDevice(Stage):
    """Move the annotated network to the device."""

    name = "device"

    def wanted(self, state: State) -> bool:
        """Return whether the device is another than the CPU, where networks are captured."""
        return state.device.type != "cpu"

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``network`` to a copy on the device."""
        network = copy.deepcopy(state.network)
        return replace(state, maybe_network=to_device(network, state.device))


class ChooseWidths(CompoundStage):
    """Choose the width of each layer for a budget or an accuracy."""

    name = "choice of widths"

    def wanted(self, state: State) -> bool:
        """Return whether a budget or an accuracy is set."""
        return state.config.budget is not None or state.config.needs_held_out

    def run(self, state: State, progress: Progress) -> State:
        """Return a state with all widths in ``config``, and the network annotated with them."""
        if not self.wanted(state):
            return state
        watch = Stopwatch(progress)
        notes = unused_widths_notes(state.config)
        for note in notes:  # before the measurement, which takes minutes
            progress.note(note)
        choice = WidthChooser(state, watch).choose()
        network = copy.deepcopy(state.network)
        annotate(network, state.target.rules, bit_widths(choice.config, raw=state.data.raw))
        state = replace(state, config=choice.config, maybe_network=network, chosen_drop=choice.drop)
        return state.noting(*notes).recording(allocation=choice.description).timed(watch.seconds)


class KeepAccuracy(CompoundStage):
    """Run IDC and fine-tuning, and revert them if they reduce held-out rank-1 below the goal."""

    name = "held-out accuracy"

    def run(self, state: State, progress: Progress) -> State:
        """Return the trained state, or the state before training if too much accuracy is lost."""
        learned = run_stages(LEARNING, state, progress)
        if not state.config.needs_held_out:
            return learned
        drop = held_out_drop(learned)
        allocation = learned.record.get("allocation", {})
        if drop <= allowed_drop(state.config):
            return learned.recording(allocation={**allocation, "held_out_drop": drop})
        note = "IDC and fine-tuning reduced held-out rank-1; reverted"
        progress.note(note)
        return (
            replace(learned, maybe_quantized=state.quantized)
            .noting(note)
            .recording(allocation={**allocation, "held_out_drop": state.chosen_drop}, undone_for_rank1=True)
        )


def pinned_notes(captured: Capture, axes: set[int], why: str) -> list[str]:
    """Return a note for each dimension that is fixed in the file."""
    sizes = ((BATCH_AXIS, "batch size", captured.batch), (FRAME_AXIS, "frame count", captured.frames))
    return [
        f"the network is taken with a {name} of {size} only: {why}{_cause(captured, axis)}"
        for axis, name, size in sizes
        if axis in axes and size is not None
    ]


def _cause(captured: Capture, axis: int) -> str:
    """Return what fixes or limits an axis, as the end of a note; empty if it is not known."""
    return f"; {captured.causes[axis]}" if axis in captured.causes else ""


def type_notes(what_has: str, places: Sequence[str]) -> list[str]:
    """Return a note on what would change the type of layers and has no effect, given its places."""
    if not places:
        return []
    return [
        f"{what_has} no effect at {', '.join(places)}: the network is captured, quantized and "
        "compared in float32"
    ]
