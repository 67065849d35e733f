"""Writing a network as an ONNX file, in float or with the quantizers of a graph."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import fx

from qgait_ptq.errors import ExportError, ModelError, first_line
from qgait_ptq.export.byte_input import take_bytes
from qgait_ptq.export.lowering import lower_markers
from qgait_ptq.export.markers import mark_quantizers, translation_table
from qgait_ptq.export.metadata import METADATA_KEY, metadata_text
from qgait_ptq.export.rules import check_rules
from qgait_ptq.export.targets import Target
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.graph.trace import EXAMPLE_BATCH, EXAMPLE_FRAMES, Capture, quiet_torch

INPUT, OUTPUT = "silhouettes", "embedding"
DIMENSIONS = ("batch", "frames")
SMALLEST_IR_VERSION = 10  # the first that knows INT4; older runtimes refuse newer ones


def export_float(graph_module: fx.GraphModule, capture: Capture, opset: int) -> onnx.ModelProto:
    """Export the float graph; arguments as of `export_quantized`."""
    return _export(copy.deepcopy(graph_module), capture, opset, {})


def export_quantized(
    graph_module: fx.GraphModule, capture: Capture, target: Target, byte_input: bool = False
) -> onnx.ModelProto:
    """Export a calibrated graph as Q/DQ ONNX.

    Args:
        graph_module: with fake-quantize modules whose ranges are set.
        capture: where the graph came from; its free dimensions are free in the file.
        target: what the file is for.
        byte_input: the file takes silhouettes as uint8, 0..255, instead of float32 in [0, 1].

    Raises:
        ExportError: torch's exporter or the ONNX checker refuses the graph, or it breaks a target's rule.
    """
    marked, markers = mark_quantizers(graph_module)
    exported = _export(marked, capture, target.opset, translation_table())
    model = lower_markers(exported, markers, target.storage)
    if byte_input:
        take_bytes(model)
    _check(model)
    check_rules(model, target)
    return model


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        ModelError: there is none.
    """
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's exceptions are not public
        raise ModelError(f"{path}: not an ONNX file ({type(error).__name__})") from None


def write_metadata(model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Store a dictionary in the model's metadata."""
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=metadata_text(metadata)))


def _export(
    graph_module: fx.GraphModule, capture: Capture, opset: int, table: dict[Any, Any]
) -> onnx.ModelProto:
    example = torch.zeros(
        capture.batch or EXAMPLE_BATCH, capture.frames or EXAMPLE_FRAMES, *capture.frame_shape
    )
    free = (capture.batch is None, capture.frames is None)
    dynamic = {axis: torch.export.Dim.AUTO for axis, is_free in enumerate(free) if is_free}
    try:
        with quiet_torch():
            program = torch.onnx.export(
                to_device(graph_module, torch.device("cpu")),
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(dynamic,),
                custom_translation_table=table,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"the graph cannot be written as ONNX ({type(error).__name__}: {first_line(error)})"
        ) from error
    assert program is not None  # noqa: S101 - dynamo=True gives a program
    model = program.model_proto
    _name_dimensions(model, free)
    _strip_debug_information(model)
    model.ir_version = SMALLEST_IR_VERSION
    return model


def _name_dimensions(model: onnx.ModelProto, free: tuple[bool, bool]) -> None:
    """Call the free dimensions ``batch`` and ``frames`` instead of torch's symbols."""
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    names = {}
    for axis, is_free in enumerate(free):
        if is_free:
            names[dimensions[axis].dim_param] = DIMENSIONS[axis]
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
    del model.graph.value_info[:]  # their symbols would still be torch's


def _strip_debug_information(model: onnx.ModelProto) -> None:
    """Remove torch's notes on nodes: they name the exporting machine's files."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for described in (model, graph, *graph.node):
        described.doc_string = ""


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX checker refuses the file ({first_line(error)})") from error
