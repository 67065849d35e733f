"""`quantize`: the list of stages from a network to its result, as a whole and in four steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qgait_ptq.calibration.stages import WITHOUT_LABELS
from qgait_ptq.config.schema import QuantConfig, Recipe
from qgait_ptq.errors import ConfigError
from qgait_ptq.exporters.onnx_file import write_metadata
from qgait_ptq.gait.data.contact_sheet import draw_sequences, encode_png
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.gait_data import GaitData, as_gait_data
from qgait_ptq.gait.walkers.loading import load_walkers
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.pipeline.evaluating import Evaluate, MeasureSpeed
from qgait_ptq.pipeline.expectation import ExpectTime
from qgait_ptq.pipeline.exporting import CheckOtherRuntimes, CheckParity, Export, MeasureLayers, check_budget
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
from qgait_ptq.report.terminal import default_progress
from qgait_ptq.runtime.sessions import RUNTIMES
from qgait_ptq.stages.stage import Stage, Stopwatch, run_stages
from qgait_ptq.stages.state import Source, State
from qgait_ptq.system.device import choose_device
from qgait_ptq.system.integers import check_integer
from qgait_ptq.system.progress import Progress

PREPARATION: tuple[Stage, ...] = (
    TakeSubmodule(),
    CaptureNetwork(),
    CheckOperators(),
    CheckKernels(),
    ToDevice(),
)
CALIBRATION: tuple[Stage, ...] = (ChooseWidths(), *WITHOUT_LABELS, KeepAccuracy(), MeasureLayers())
EXPORT: tuple[Stage, ...] = (Export(), CheckParity(), CheckOtherRuntimes())
EVALUATION: tuple[Stage, ...] = (Evaluate(), MeasureSpeed())
STAGES = (*PREPARATION, ExpectTime(), *CALIBRATION, *EXPORT, *EVALUATION)


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
        model: float network. It maps silhouettes ``[n, s, h, w]`` in [0, 1] to embeddings ``[n, c, p]`` or
            ``[n, c]``. Other conventions need an adapter (`qgait_ptq.gait.adapters`).
        data: a `GaitData` with gallery and probes, a `GaitDataset`, or (sequence, label) pairs. Without
            gallery and probes, the report has agreement with float instead of accuracy. None: the
            synthetic walkers.
        config: settings; None for W8A8.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.
        frames: frame count, for networks that accept only one.
        output: name of the embedding, for networks with several outputs, such as ``features.0``.
        submodule: module path of a submodule to capture and quantize alone. The file holds only this
            submodule, and `qgait_ptq.load_submodule` puts it back into the network.
        source: entries about the model for the report, such as its path and hash.
        recipe: recipe to store with the result.
        progress: receives stages and notes. None: they are shown in a notebook, and nowhere else.
        work_folder: folder for states of fine-tuning, so that an interrupted run can continue. They are
            removed when the result is saved, and the folder if nothing else is in it. None: no states are
            kept.
        resume: whether to continue from the states in `work_folder`.

    Returns:
        Simulation, file and report.

    Raises:
        QgaitError: the input is not valid; the subclass and the text say what is wrong.
    """
    listener = progress or default_progress()
    state = begin(
        Source(model, frames, output, submodule),
        data,
        config,
        device=device,
        progress=listener,
        work_folder=work_folder,
        resume=resume,
    )
    return conclude(run_stages(STAGES, state, listener), source, recipe)


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
    """Return the first state of a run. The arguments are those of `quantize`.

    Raises:
        ConfigError: the frame count is not an integer of at least 1.
    """
    if source.frames is not None:
        source = replace(source, frames=check_integer(source.frames, "frames", 1))
    watch = Stopwatch(progress or default_progress())
    with watch.stage("data"):
        if data is None:
            watch.note("no data given: using the built-in synthetic walkers")
        settings = _checked(config)
        finetuning = settings.finetune.unlabelled if settings.finetune.enabled else 0
        if data is None:
            gait_data = load_walkers(finetuning=finetuning, note=watch.note)
        else:
            gait_data = as_gait_data(data)
    overlap = gait_data.overlap_note()
    notes = () if overlap is None else (overlap,)
    for note in notes:
        watch.note(note)
    chosen = choose_device(device)
    state = State(source, settings, chosen, gait_data, gait_data, work_folder, resume)
    return state.noting(*notes).timed(watch.seconds)


def _checked(config: QuantConfig | None) -> QuantConfig:
    """Return the settings of a run; those of W8A8 for None.

    Raises:
        ConfigError: the settings have another type.
    """
    if config is not None and not isinstance(config, QuantConfig):
        raise ConfigError(
            f"config is a {type(config).__name__}, not a QuantConfig; pass qg.QuantConfig(weight_bits=4, ...)"
        )
    return config or QuantConfig()


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
    """Capture and annotate a network: the first step of `quantize`.

    Args:
        model: float network, as for `quantize`.
        data: data, as for `quantize`.
        config: settings; None for W8A8.
        device: ``auto``, ``cpu`` or ``cuda``.
        frames: frame count, for networks that accept only one.
        output: name of the embedding, for networks with several outputs.
        submodule: module path of a submodule to capture and quantize alone.
        progress: receives stages and notes. None: they are shown in a notebook, and nowhere else.

    Returns:
        A state with ``captured`` and ``network``, the simplified float graph with annotations.

    Raises:
        QgaitError: the input is not valid; the subclass and the text say what is wrong.
    """
    source = Source(model, frames, output, submodule)
    listener = progress or default_progress()
    return run_stages(PREPARATION, begin(source, data, config, device=device, progress=listener), listener)


def calibrate(state: State, *, progress: Progress | None = None) -> State:
    """Choose widths for a budget or an accuracy if one is set, and calibrate: the second step of `quantize`.

    Args:
        state: state from `prepare`; it is not changed.
        progress: receives stages and notes. None: they are shown in a notebook, and nowhere else.

    Returns:
        A state with ``quantized``, the simulation: the graph with its quantizers.

    Raises:
        QgaitError: the data or the settings are not valid; the subclass and the text say what is wrong.
    """
    return run_stages(CALIBRATION, state, progress or default_progress())


def export(state: State, *, progress: Progress | None = None) -> State:
    """Export the file and compare it with the simulation: the third step of `quantize`.

    Args:
        state: state from `calibrate`; it is not changed.
        progress: receives stages and notes. None: they are shown in a notebook, and nowhere else.

    Returns:
        A state with ``file``: the quantized model, the float model, and a session.

    Raises:
        ExportError: the network cannot be exported, or the file differs from the simulation.
    """
    return run_stages(EXPORT, state, progress or default_progress())


def evaluate(
    state: State,
    source: dict[str, Any] | None = None,
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
) -> QuantizationResult:
    """Evaluate float network, simulation and file on the test sequences: the last step of `quantize`.

    Args:
        state: state from `export`; it is not changed.
        source: entries about the model for the report, such as its path and hash.
        recipe: recipe to store with the result.
        progress: receives stages and notes. None: they are shown in a notebook, and nowhere else.

    Raises:
        CalibrationError: the quantized network no longer ranks people.
    """
    return conclude(run_stages(EVALUATION, state, progress or default_progress()), source, recipe)


def conclude(
    state: State, source: dict[str, Any] | None = None, recipe: Recipe | None = None
) -> QuantizationResult:
    """Return the result of a run after all its stages. The arguments are those of `evaluate`.

    Raises:
        ExportError: the file is larger than the budget.
    """
    report = build_report(state, source or {})
    file = state.file
    write_metadata(file.model, report.metadata())
    check_budget(state)
    write_metadata(file.float_model, report.float_metadata(RUNTIMES))
    sizes = {"float": file.float_model.ByteSize(), "onnx": file.model.ByteSize()}
    data, seed = state.given, state.config.seed
    return QuantizationResult(
        to_device(state.quantized, torch.device("cpu")),
        report.model_copy(update={"size_bytes": sizes}),
        file.model,
        recipe,
        file.float_model,
        state.captured,
        None if data.raw else encode_png(draw_sequences(data.calibration, seed)),
        state.work_folder if state.config.finetune.enabled else None,
    )
