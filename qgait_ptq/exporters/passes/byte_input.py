"""Silhouettes as bytes: a file that takes uint8, 0..255, as they lie on disk and in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qgait_ptq.exporters.passes.onnx_pass import OnnxPass
from qgait_ptq.onnx_graph.editing import make_node, replace_reads
from qgait_ptq.onnx_graph.view import OnnxGraph

LARGEST = 255
SHAPE_READERS = frozenset({"Shape"})


def byte_input_pass(names: Sequence[str]) -> OnnxPass:
    """Return the pass that lets inputs of a file be uint8.

    Args:
        names: of graph inputs.
    """

    def rewrite(model: onnx.ModelProto) -> None:
        for name in names:
            take_bytes(model, name)

    return OnnxPass("byte-input", rewrite)


def take_bytes(model: onnx.ModelProto, name: str) -> None:
    """Let an input of a lowered model be uint8 instead of float32, in place; what it computes stays the same.

    The bytes are the numbers of a quantizer with scale 1/255 and zero_point 0. Where the network's own input
    quantizer is just that, as it is at 8 bits, it goes; else a DequantizeLinear comes before it.
    """
    graph = OnnxGraph(model)
    graph.inputs[name].type.tensor_type.elem_type = TensorProto.UINT8
    readers = [node for node in graph.nodes if name in node.input and node.op_type not in SHAPE_READERS]
    same = [node for node in readers if _is_byte_quantizer(node, graph)]
    for node in same:
        replace_reads(model.graph.node, node.output[0], name)
        model.graph.node.remove(node)
    if len(same) < len(readers):  # others read values, not bytes
        _dequantize(model.graph, name)


def _is_byte_quantizer(node: onnx.NodeProto, graph: OnnxGraph) -> bool:
    if node.op_type != "QuantizeLinear":
        return False
    scale, zero_point = (graph.constants[name] for name in node.input[1:3])
    # In float32: the scale was found as the float32 quotient.
    is_byte = scale.astype(np.float32) == np.float32(1) / np.float32(LARGEST)
    return bool(zero_point.dtype == np.uint8 and zero_point == 0 and is_byte)


def _dequantize(graph: onnx.GraphProto, name: str) -> None:
    """Give the readers of the input's values these in [0, 1]."""
    values, scale, zero_point = f"{name}.values", f"{name}.byte_scale", f"{name}.byte_zero_point"
    others = SHAPE_READERS | {"DequantizeLinear"}
    replace_reads((node for node in graph.node if node.op_type not in others), name, values)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.asarray(1 / LARGEST, np.float32), scale),
            numpy_helper.from_array(np.asarray(0, np.uint8), zero_point),
        ]
    )
    graph.node.insert(0, make_node("DequantizeLinear", [name, scale, zero_point], values))
