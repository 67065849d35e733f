"""Silhouettes as bytes: the file takes uint8, 0..255, as silhouettes are stored."""

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
        names: names of graph inputs.
    """

    def rewrite(model: onnx.ModelProto) -> None:
        for name in names:
            take_bytes(model, name)

    return OnnxPass("byte-input", rewrite)


def take_bytes(model: onnx.ModelProto, name: str) -> None:
    """Change an input of a lowered model from float32 to uint8, in place, without changing its result.

    The bytes are the integers of a quantizer with scale 1/255 and zero-point 0. If the network's input
    quantizer has these parameters, as at 8 bits, it is removed. Otherwise a DequantizeLinear is inserted.
    """
    graph = OnnxGraph(model)
    graph.inputs[name].type.tensor_type.elem_type = TensorProto.UINT8
    readers = [node for node in graph.nodes if name in node.input and node.op_type not in SHAPE_READERS]
    same = [node for node in readers if _is_byte_quantizer(node, graph)]
    for node in same:
        replace_reads(model.graph.node, node.output[0], name)
        model.graph.node.remove(node)
    if len(same) < len(readers):  # the other readers need values
        _dequantize(model.graph, name)


def _is_byte_quantizer(node: onnx.NodeProto, graph: OnnxGraph) -> bool:
    if node.op_type != "QuantizeLinear":
        return False
    scale, zero_point = (graph.constants[name] for name in node.input[1:3])
    # Compared in float32, because the scale was computed as a float32 quotient.
    is_byte = scale.astype(np.float32) == np.float32(1) / np.float32(LARGEST)
    return bool(zero_point.dtype == np.uint8 and zero_point == 0 and is_byte)


def _dequantize(graph: onnx.GraphProto, name: str) -> None:
    """Give readers of the input its values in [0, 1]."""
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
