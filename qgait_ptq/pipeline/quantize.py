"""`quantize`: the list of stages from a network to its result, and its four parts by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from qgait_ptq.calibration.stages import WITHOUT_LABELS
from qgait_ptq.config.schema import QuantConfig, Recipe
from qgait_ptq.exporters.onnx_file import write_metadata
from qgait_ptq.gait.data.contact_sheet import draw_sequences, encode_png
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sources import GaitData, as_gait_data, load_walkers
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.pipeline.evaluating import Evaluate, MeasureSpeed
from qgait_ptq.pipeline.exporting import CheckParity, Export, MeasureLayers, check_budget
from qgait_ptq.pipeline.preparing import (
    CaptureNetwork,
    CheckKernels,
    CheckOperators,
    ChooseWidths,
    KeepAccuracy,
    TakeSubmodule,
    ToDevice,
)
from qgait_ptq.pipeline.result import QuantizationResult
from qgait_ptq.report.record import build_report
from qgait_ptq.runtime.sessions import RUNTIMES
from qgait_ptq.stages.stage import Stage, Stopwatch, run_stages
from qgait_ptq.stages.state import Source, State
from qgait_ptq.system.device import choose_device
from qgait_ptq.system.progress import Progress, Silent

PREPARATION: tuple[Stage, ...] = (
    TakeSubmodule(),
    CaptureNetwork(),
    CheckOperators(),
    CheckKernels(),
    ToDevice(),
)
CALIBRATION: tuple[Stage, ...] = (ChooseWidths(), *WITHOUT_LABELS, KeepAccuracy(), MeasureLayers())
EXPORT: tuple[Stage, ...] = (Export(), CheckParity())
EVALUATION: tuple[Stage, ...] = (Evaluate(), MeasureSpeed())
STAGES = (*PREPARATION, *CALIBRATION, *EXPORT, *EVALUATION)


def quantize(
    model: nn.Module,
    data: GaitData | GaitDataset | Any = None,
    config: QuantConfig | None = None,
    *,
    device: str = "auto",
    frames: int | None = None,
    output: str | None = None,
    submodule: str | None = None,
    source: dict[str, Any] | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    work_folder: Path | None = None,
    resume: bool = False,
) -> QuantizationResult:
    """Quantize a trained gait network.

    Args:
        model: takes silhouettes ``[n, s, h, w]`` in [0, 1] and gives the embedding ``[n, c, p]`` or
            ``[n, c]``; another convention needs an adapter around it (`qgait_ptq.gait.adapters`).
        data: a `GaitData` with gallery and probes, or a `GaitDataset` or (sequence, label) pairs, for which
            the report holds agreement with float instead of accuracy. None takes the synthetic walkers.
        config: None is W8A8.
        device: ``auto`` takes a GPU where there is one; ``cpu``, ``cuda``.
        frames: for networks that take one frame count only.
        output: names the embedding, for networks that give several tensors, such as ``features.0``.
        submodule: capture and quantize this module of the network only, where the rest cannot be captured;
            the file holds it alone, and `qgait_ptq.load_submodule` puts it back in place.
        source: what the report says of the model, such as its path and hash.
        recipe: stored with the result.
        progress: told what runs.
        work_folder: where fine-tuning keeps its states, so that a killed run can go on; None keeps none. It
            is removed when the result is saved.
        resume: go on from the states in `work_folder`.

    Raises:
        QgaitError: a subclass that says what in the input is wrong.
    """
    told = progress or Silent()
    state = begin(
        Source(model, frames, output, submodule),
        data,
        config,
        device=device,
        progress=told,
        work_folder=work_folder,
        resume=resume,
    )
    return conclude(run_stages(STAGES, state, told), source, recipe)


def begin(
    source: Source,
    data: GaitData | GaitDataset | Any = None,
    config: QuantConfig | None = None,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    work_folder: Path | None = None,
    resume: bool = False,
) -> State:
    """Give the state that a run begins with; arguments as of `quantize`."""
    watch = Stopwatch(progress or Silent())
    with watch.stage("data"):
        if data is None:
            watch.note("no data given: quantizing for the built-in synthetic walkers")
        given = load_walkers() if data is None else as_gait_data(data)
    place = choose_device(device)
    state = State(source, config or QuantConfig(), place, given, given, work_folder, resume)
    return state.timed(watch.seconds)


def prepare(
    model: nn.Module,
    data: GaitData | GaitDataset | Any = None,
    config: QuantConfig | None = None,
    *,
    device: str = "auto",
    frames: int | None = None,
    output: str | None = None,
    submodule: str | None = None,
    progress: Progress | None = None,
) -> State:
    """Capture a network and say where its quantizers stand: the first part of `quantize`.

    Args:
        model: see `quantize`, as the others.
        data: see there.
        config: see there.
        device: see there.
        frames: see there.
        output: see there.
        submodule: see there.
        progress: see there.

    Returns:
        A state with ``captured`` and ``network``, the simplified float graph with annotations.

    Raises:
        QgaitError: a subclass that says what in the input is wrong.
    """
    source = Source(model, frames, output, submodule)
    return run_stages(PREPARATION, begin(source, data, config, device=device, progress=progress), progress)


def calibrate(state: State, *, progress: Progress | None = None) -> State:
    """Choose widths where that is asked for, and calibrate: the second part of `quantize`.

    Args:
        state: from `prepare`; it stays as it is.
        progress: told what runs.

    Returns:
        A state with ``quantized``, the simulation: the graph with its quantizers.

    Raises:
        QgaitError: a subclass that says what in the data or in the settings is wrong.
    """
    return run_stages(CALIBRATION, state, progress)


def export(state: State, *, progress: Progress | None = None) -> State:
    """Write the file for the runtime and compare it with the simulation: the third part of `quantize`.

    Args:
        state: from `calibrate`; it stays as it is.
        progress: told what runs.

    Returns:
        A state with ``file``: the quantized model, the float one, and a session.

    Raises:
        ExportError: the file cannot be written, or is not what the simulation computes.
    """
    return run_stages(EXPORT, state, progress)


def evaluate(
    state: State,
    source: dict[str, Any] | None = None,
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
) -> QuantizationResult:
    """Judge float network, simulation and file on the test sequences: the last part of `quantize`.

    Args:
        state: from `export`; it stays as it is.
        source: what the report says of the model, such as its path and hash.
        recipe: stored with the result.
        progress: told what runs.

    Raises:
        CalibrationError: the quantized network no longer ranks people.
    """
    return conclude(run_stages(EVALUATION, state, progress), source, recipe)


def conclude(
    state: State, source: dict[str, Any] | None = None, recipe: Recipe | None = None
) -> QuantizationResult:
    """Give the result of a run behind all its stages; arguments as of `evaluate`.

    Raises:
        ExportError: the file is larger than the budget.
    """
    report = build_report(state, source or {})
    file = state.file
    write_metadata(file.model, report.metadata())
    check_budget(state)
    write_metadata(file.float_model, report.float_metadata(RUNTIMES))
    sizes = {"float": file.float_model.ByteSize(), "onnx": file.model.ByteSize()}
    given, seed = state.given, state.config.seed
    return QuantizationResult(
        to_device(state.quantized, torch.device("cpu")),
        report.model_copy(update={"size_bytes": sizes}),
        file.model,
        recipe,
        file.float_model,
        state.captured,
        None if given.raw else encode_png(draw_sequences(given.calibration, seed)),
        state.work_folder if state.config.finetune.enabled else None,
    )
