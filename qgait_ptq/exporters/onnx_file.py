"""Writing a network as an ONNX file, in float or with its quantizers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import fx

from qgait_ptq.capture.captured import Capture
from qgait_ptq.capture.quiet import quiet_torch, without_stack_traces
from qgait_ptq.errors import ExportError, ModelError
from qgait_ptq.exporters.exportability import explain_export_failure
from qgait_ptq.exporters.floor_pooling import floor_pools
from qgait_ptq.exporters.lowering import lower_markers
from qgait_ptq.exporters.markers import Marker, mark_quantizers, translation_table
from qgait_ptq.exporters.metadata import METADATA_KEY, metadata_text, parse_metadata
from qgait_ptq.exporters.passes import get_pass, layer_path
from qgait_ptq.exporters.passes.byte_input import byte_input_pass
from qgait_ptq.exporters.passes.onnx_pass import check_model, run_passes
from qgait_ptq.exporters.wrapped_padding import slice_wrapped_padding
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.graph.frame_inputs import input_nodes, split_inputs, split_values
from qgait_ptq.graph.frame_layout import InputKind
from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.onnx_graph.external_data import read_model_bytes
from qgait_ptq.placement.quantized_layers import quantized_layers
from qgait_ptq.reference.pair_sums import bound_pair_sums
from qgait_ptq.targets.rules import check_rules
from qgait_ptq.targets.target import Target

INPUT, OUTPUT = "silhouettes", "embedding"
RESERVED = "qgait."  # prefix of names that no value inside a network has
DIMENSIONS = ("batch", "frames")
SMALLEST_IR_VERSION = 10  # the first with INT4; older runtimes refuse newer versions


def export_float(graph_module: fx.GraphModule, capture: Capture, opset: int) -> onnx.ModelProto:
    """Export a graph without quantizers; see `export_quantized` for the arguments.

    Raises:
        ExportError: torch's exporter refuses the graph.
    """
    return _export(copy.deepcopy(graph_module), capture, opset, {})


@dataclass(frozen=True)
class MarkedModel:
    """A calibrated graph as ONNX, with markers in place of its quantizers.

    Attributes:
        model: ONNX model, which no runtime takes.
        markers: quantizers by the index of their marker.
    """

    model: onnx.ModelProto
    markers: list[Marker]


def export_marked(graph_module: fx.GraphModule, capture: Capture, opset: int) -> MarkedModel:
    """Export a calibrated graph with markers, of which `quantized_model` and `float_model` are made.

    Raises:
        ExportError: torch's exporter refuses the graph.
    """
    marked, markers = mark_quantizers(graph_module)
    return MarkedModel(_export(marked, capture, opset, translation_table()), markers)


def quantized_model(
    marked: MarkedModel, graph_module: fx.GraphModule, target: Target, byte_input: bool = False
) -> onnx.ModelProto:
    """Return the Q/DQ model of a marked one.

    Args:
        marked: the graph with markers.
        graph_module: graph with fake-quantize modules whose ranges are set.
        target: target of the file.
        byte_input: whether the file takes silhouettes as uint8, 0..255, instead of float32 in [0, 1].

    Raises:
        ExportError: the ONNX checker refuses the model, a pass of the target makes it invalid, or the file
            breaks a rule of the target.
        ConfigError: the target lists a pass that does not exist.
    """
    passes = [get_pass(name) for name in target.onnx_passes]
    if byte_input:
        passes.append(byte_input_pass(_silhouette_inputs(graph_module)))
    model = lower_markers(copy.deepcopy(marked.model), marked.markers, target.storage)
    check_model(model, "after its quantizers were lowered")
    run_passes(model, passes)
    check_rules(model, target)
    _check_pair_sums(model, graph_module)
    return model


def export_quantized(
    graph_module: fx.GraphModule, capture: Capture, target: Target, byte_input: bool = False
) -> onnx.ModelProto:
    """Export a calibrated graph as Q/DQ ONNX; see `quantized_model` for arguments and errors.

    Args:
        graph_module: graph with fake-quantize modules whose ranges are set.
        capture: capture of the graph; its free dimensions are free in the file.
        target: target of the file.
        byte_input: whether the file takes silhouettes as uint8, 0..255, instead of float32 in [0, 1].
    """
    return quantized_model(
        export_marked(graph_module, capture, target.opset), graph_module, target, byte_input
    )


def _silhouette_inputs(graph_module: fx.GraphModule) -> list[str]:
    """Return the names of the inputs that are silhouettes."""
    nodes = input_nodes(graph_module).values()
    return [one.name for one in nodes if one.kind is InputKind.SILHOUETTES] if nodes else [INPUT]


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file from an untrusted source, and check its node order and metadata.

    Nodes must come after the nodes whose results they read. Otherwise, code that follows edges might not end.

    Raises:
        ModelError: the file does not exist, is damaged, or has weights in other files.
    """
    content = read_model_bytes(path)
    try:
        model = onnx.load_from_string(content)
        is_text = all(isinstance(text, str) for text in _texts(model))
    except Exception as error:  # protobuf's exceptions are not public
        raise ModelError(f"{path}: not an ONNX file ({type(error).__name__})") from None
    if not is_text:
        raise ModelError(f"{path}: damaged: it contains a name that is not UTF-8 text")
    misplaced = _find_misplaced(model.graph)
    if misplaced is not None:
        raise ModelError(f"{path}: damaged: the node {misplaced} is not in topological order")
    parse_metadata({entry.key: entry.value for entry in model.metadata_props}, path)
    return model


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """Yield the names in a file; protobuf gives bytes for names that are not UTF-8."""
    graph = model.graph
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)


def _find_misplaced(graph: onnx.GraphProto) -> str | None:
    """Return the first node that reads an unknown value or gives a known one; None if there is none."""
    known = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    known.update(value.values.name for value in graph.sparse_initializer)
    for node in graph.node:
        outputs = {name for name in node.output if name}
        if not known.issuperset(node.input) or not known.isdisjoint(outputs):
            return f"{node.op_type} {node.name}"
        known.update(outputs)
    return None


def write_metadata(model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Store a dictionary in the model's metadata."""
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=metadata_text(metadata)))


def _export(
    graph_module: fx.GraphModule, capture: Capture, opset: int, table: dict[Any, Any]
) -> onnx.ModelProto:
    parts = split_inputs(graph_module)
    examples = split_values(capture.empty_example(), parts)
    dynamic = dict.fromkeys(sorted(capture.free_axes), torch.export.Dim.AUTO)
    plain_names = [*([part.name for part in parts] or [INPUT]), OUTPUT]
    names = {f"{RESERVED}{name}": name for name in plain_names}
    *inputs, output = names
    try:
        with quiet_torch(), without_stack_traces():  # the graph that was captured knows its lines
            program = torch.onnx.export(
                to_device(graph_module, torch.device("cpu")),
                examples,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(dynamic,) * len(examples),
                custom_translation_table=table,
                input_names=inputs,
                output_names=[output],
                verbose=False,
            )
    except Exception as error:
        raise ExportError(explain_export_failure(error, graph_module)) from error
    if program is None:
        raise ExportError("the graph cannot be written as ONNX (torch's exporter returned no program)")
    model = program.model_proto
    _rename_values(model, names)
    _name_dimensions(model, capture.free_axes)
    _strip_debug_information(model)
    # Before markers are lowered, so that the float file has these forms, too.
    floor_pools(model)
    slice_wrapped_padding(model)
    model.ir_version = SMALLEST_IR_VERSION
    return model


def _rename_values(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Name inputs and output; an inner value with such a name, for example ``embedding``, is renamed."""
    changes = {name: f"{name}.inner" for name in names.values()} | names
    graph = model.graph
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [changes.get(value, value) for value in values]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = changes.get(value.name, value.name)


def _name_dimensions(model: onnx.ModelProto, free_axes: frozenset[int]) -> None:
    """Name the free dimensions ``batch`` and ``frames`` instead of torch's symbols."""
    names = {
        graph_input.type.tensor_type.shape.dim[axis].dim_param: DIMENSIONS[axis]
        for graph_input in model.graph.input
        for axis in free_axes
    }
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
    del model.graph.value_info[:]  # it still has torch's symbols


def _strip_debug_information(model: onnx.ModelProto) -> None:
    """Remove torch's notes on nodes, which name files of the exporting machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for described in (model, graph, *graph.node):
        described.doc_string = ""


def _check_pair_sums(model: onnx.ModelProto, graph_module: fx.GraphModule) -> None:
    """Refuse a file in which a layer exceeds its limit of pairs; the weights are read from the file."""
    limited = {
        layer_name(layer.node)
        for layer in quantized_layers(graph_module)
        if layer.weight_quantizer.grid.pair_limit is not None
    }
    for bound in bound_pair_sums(model).unsafe:
        if layer_path(bound.layer) in limited:
            raise ExportError(
                f"layer {bound.layer}: two neighbouring weights sum to {bound.worst_pair}. With activation "
                f"codes up to {bound.largest_code} their pair sum exceeds 16 bits, so results depend on "
                "the processor. Give the layer 7-bit weights (layers: {NAME: {weight_bits: 7}}), or use "
                "--weight-range full for processors with VNNI"
            )
