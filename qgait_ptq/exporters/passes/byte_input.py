"""Silhouettes as bytes: a file that takes uint8, 0..255, as they lie on disk and in memory."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGEST = 255


def take_bytes(model: onnx.ModelProto, name: str) -> None:
    """Let an input of a lowered model be uint8 instead of float32, in place; what it computes stays the same.

    The bytes are the numbers of a quantizer with scale 1/255 and zero_point 0. Where the network's own input
    quantizer is just that, as it is at 8 bits, it goes; else a DequantizeLinear comes before it.
    """
    graph = model.graph
    (given,) = (value for value in graph.input if value.name == name)
    given.type.tensor_type.elem_type = TensorProto.UINT8
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    readers = [node for node in graph.node if given.name in node.input and node.op_type != "Shape"]
    same = [node for node in readers if _is_byte_quantizer(node, constants)]
    for node in same:
        _read_instead(graph, node.output[0], given.name)
        graph.node.remove(node)
    if len(same) < len(readers):  # others read values, not bytes
        _dequantize(graph, given.name)


def _is_byte_quantizer(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    if node.op_type != "QuantizeLinear":
        return False
    scale, zero_point = (constants[name] for name in node.input[1:3])
    # In float32: the scale was found as the float32 quotient.
    is_byte = scale.astype(np.float32) == np.float32(1) / np.float32(LARGEST)
    return bool(zero_point.dtype == np.uint8 and zero_point == 0 and is_byte)


def _dequantize(graph: onnx.GraphProto, name: str) -> None:
    """Give the readers of the input's values these in [0, 1]."""
    values, scale, zero_point = f"{name}.values", f"{name}.byte_scale", f"{name}.byte_zero_point"
    for node in graph.node:
        if node.op_type not in ("DequantizeLinear", "Shape"):
            for index, read in enumerate(node.input):
                if read == name:
                    node.input[index] = values
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.asarray(1 / LARGEST, np.float32), scale),
            numpy_helper.from_array(np.asarray(0, np.uint8), zero_point),
        ]
    )
    node = helper.make_node(
        "DequantizeLinear", [name, scale, zero_point], [values], name=f"{values}.DequantizeLinear"
    )
    graph.node.insert(0, node)


def _read_instead(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, read in enumerate(node.input):
            if read == old:
                node.input[index] = new
