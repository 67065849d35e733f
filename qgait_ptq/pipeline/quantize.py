"""`quantize`: the stages in their order. The only place that knows them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qgait_ptq.capture.trace import Capture
from qgait_ptq.config.schema import QuantConfig, Recipe
from qgait_ptq.evaluation.accuracy import accuracy_of, agreement_of, comparison_of
from qgait_ptq.export.onnx_file import export_float, write_metadata
from qgait_ptq.gait.data.contact_sheet import draw_sequences, encode_png
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sources import GaitData
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.pipeline.file_run import FileRun
from qgait_ptq.pipeline.result import QuantizationResult
from qgait_ptq.pipeline.run import Run
from qgait_ptq.prepare.layers import LayerPlan, count_parameters, layer_scales, list_layers
from qgait_ptq.prepare.planning import REPORTED_FRAMES
from qgait_ptq.reference.proof import prove_exactness
from qgait_ptq.report.record import build_report
from qgait_ptq.runtime.sessions import (
    RUNTIMES,
)
from qgait_ptq.system.device import choose_device
from qgait_ptq.system.progress import Progress, Silent


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
    run = Run(config or QuantConfig(), choose_device(device), progress or Silent(), work_folder, resume)
    gait_data = run.prepare(data)
    part = None if submodule is None else run.take_part(model, submodule, gait_data, frames, output)
    if part is None:
        seen = gait_data
        captured, network = run.capture(model, seen, frames, output)
        run.check_kernels(network)
        run.choose_widths(captured, network, seen)
    else:
        seen = part.data
        captured, network = run.capture(part.model, seen, part.isolated.frames, None)
        run.check_kernels(network)
    quantized = run.calibrate(captured, network, seen)
    file = FileRun(run, captured, quantized, seen)
    onnx_model, session = file.export()
    captured = file.captured
    float_model = export_float(network, captured, run.target.opset)
    parity, slow_layers = file.check(onnx_model, session)
    whole_frames = captured.frames if part is None else frames
    embeddings = file.embed(network, session, gait_data, whole_frames, part)
    accuracy = accuracy_of(embeddings, gait_data)
    agreement = agreement_of(embeddings, run.config)
    speed = file.measure_speed(float_model, onnx_model)
    layers = list_layers(network)
    report = build_report(
        model=_describe_model(captured, layers, embeddings[0], seen, source)
        | {
            "streams": part is None and file.streams(onnx_model, session),
            "submodule": None if part is None else part.describe(),
        },
        config=run.config,
        target=run.target,
        data=gait_data,
        accuracy=accuracy,
        comparison=comparison_of(embeddings, accuracy, gait_data, run.config.seed),
        agreement=agreement,
        parity=parity,
        proof=prove_exactness(onnx_model),
        slow_layers=slow_layers,
        layers=layers,
        scales=layer_scales(quantized),
        factors=run.factors,
        sqnr=run.sqnr,
        calibration=run.calibration,
        allocation=run.allocation,
        speed=speed,
        seconds=run.seconds,
    )
    write_metadata(onnx_model, report.metadata())
    file.check_budget(onnx_model)
    write_metadata(float_model, report.float_metadata(RUNTIMES))
    sizes = {"float": float_model.ByteSize(), "onnx": onnx_model.ByteSize()}
    return QuantizationResult(
        to_device(quantized, torch.device("cpu")),
        replace(report, size_bytes=sizes),
        onnx_model,
        recipe,
        float_model,
        captured,
        None if gait_data.raw else encode_png(draw_sequences(gait_data.calibration, run.config.seed)),
        work_folder if run.config.finetune.enabled else None,
    )


def _describe_model(
    captured: Capture,
    layers: list[LayerPlan],
    embedding: Tensor,
    data: GaitData,
    source: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        **(source or {}),
        "frame_shape": list(captured.frame_shape),
        "raw": data.raw,
        "inputs": data.layout.describe() if data.layout else [],
        "frames": captured.frames,
        "batch": captured.batch,
        "channels": embedding.shape[1],
        "parts": embedding.shape[2],
        "parameters": count_parameters(layers),
        "macs": sum(layer.macs for layer in layers),
        "macs_frames": captured.frames or REPORTED_FRAMES,
    }
