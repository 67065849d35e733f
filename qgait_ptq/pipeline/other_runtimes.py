"""The file in the other runtimes of its target: a difference from the simulation is told, not refused."""

from __future__ import annotations

from functools import partial

from qgait_ptq.calibration.batches import taken_batches
from qgait_ptq.errors import DataError, ExportError, MissingExtraError, ModelError
from qgait_ptq.pipeline.agreeing_file import example_clips
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.stages.state import State
from qgait_ptq.verification.parity import compare_with_simulation, find_failing_axes
from qgait_ptq.verification.simulation import Simulation

SEQUENCES = 4  # whole sequences to compare, besides clips of several sizes


def difference_in(state: State, runtime: str) -> str | None:
    """Return what a runtime computes differently from the simulation, as a sentence; None if it agrees.

    The file is compared with the tolerance of the parity check, at the sizes of the check of the export and
    on a few whole sequences.

    Args:
        state: state with the exported file.
        runtime: installed runtime.
    """
    try:
        session = open_session(state.file.model.SerializeToString(), runtime, spinning=False)
    except (MissingExtraError, ModelError) as error:
        return str(error)
    run, simulation = partial(run_session, session), Simulation.of(state.quantized, state.device)
    required, captured = state.config.minimum_parity, state.captured
    failing = find_failing_axes(run, simulation, example_clips(state, captured), captured.sizes, required)
    if failing:
        batch, frames = min(failing.values())
        return (
            f"the file differs from the simulation, first at a batch size of {batch} and a frame count of "
            f"{frames}"
        )
    try:
        batches = taken_batches(state, state.data.test.choose(SEQUENCES, state.config.seed))
        compare_with_simulation(run, simulation, batches, required, judges_spread=False)
    except (ExportError, ModelError) as error:
        return str(error)
    except DataError:  # the network gives NaN for these sequences, so the clips must do
        return None
    return None


def other_runtimes_note(state: State, runtime: str) -> str | None:
    """Return a note about a runtime in which the file is wrong; None if it is right."""
    difference = difference_in(state, runtime)
    if difference is None:
        return None
    return (
        f"do not use this file in {runtime}: {difference}. In {state.runtime}, it computes the same as the "
        f"simulation; --target {runtime} (target: {runtime}) writes a file for {runtime}"
    )
