"""Maxima over frames as pooling, for runtimes whose reduction of an outer axis is slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qgait_ptq.exporters.passes.onnx_pass import OnnxPass, Requirements
from qgait_ptq.onnx_graph.editing import make_node, replace_nodes
from qgait_ptq.onnx_graph.view import OnnxGraph, attribute

WINDOW = 32  # frames that one place of the pooling sees; what is left goes through the reduction
# All maxima share these.
CONSTANTS = {"rows": [0, 0, 1, -1], "kept": [0, -1], "axis": [1]}
PREFIX = "qgait.pooling."


def pool_maxima(model: onnx.ModelProto) -> None:
    """Let quantized tensors go through a MaxPool before they are reduced over an outer axis, in place.

    onnxruntime reduces an outer axis one value at a time, but pools with vector instructions. The axis
    becomes the rows of an image, the axes behind it become its channels, and windows of `WINDOW` rows are
    pooled. The last one may be shorter: padding never is a maximum. So any size is right.

    Args:
        model: with the shapes of its inner tensors.
    """
    graph = OnnxGraph(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        source = graph.producer(node.input[0]) if node.op_type == "ReduceMax" else None
        if source is not None and source.op_type == "DequantizeLinear":
            rank = graph.rank(node.input[0]) or 0
            axis = _outer_axis(node, graph.constants.get(node.input[1]), rank)
            if axis is not None:
                nodes += _pool(node, source, axis, rank)
        nodes.append(node)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), f"{PREFIX}{name}")
        for name, value in CONSTANTS.items()
    )
    replace_nodes(model.graph, nodes)


# The first opset whose Shape gives a part of the sizes.
POOL_MAXIMA = OnnxPass("pool-maxima", pool_maxima, Requirements(opset=15, shapes=True))


def _outer_axis(node: onnx.NodeProto, axes: NDArray[Any] | None, rank: int) -> int | None:
    """The one axis that is reduced away, if it lies between others."""
    if axes is None or axes.size != 1 or attribute(node, "keepdims", 1):
        return None
    axis = int(axes.item()) + (rank if axes.item() < 0 else 0)
    return axis if 0 < axis < rank - 1 else None


def _pool(node: onnx.NodeProto, source: onnx.NodeProto, axis: int, rank: int) -> list[onnx.NodeProto]:
    """The nodes in front of a reduction, which reads their result instead, ``[n, ⌈s / WINDOW⌉, ...]``."""
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        result = f"{node.output[0]}.{output}"
        nodes.append(make_node(operator, inputs, result, **attributes))
        return result

    rows, kept, first = (f"{PREFIX}{name}" for name in CONSTANTS)
    integers = source.input[0]
    if axis != 1:
        order = [0, axis, *(other for other in range(1, rank) if other != axis)]
        integers = add("Transpose", [integers], "axis_first", perm=order)
    shape = add("Concat", [kept, add("Shape", [integers], "others", start=2)], "shape", axis=0)
    image = add("Reshape", [integers, rows], "rows")
    image = add("Transpose", [image], "channels_first", perm=[0, 3, 1, 2])
    window = {"kernel_shape": [WINDOW, 1], "strides": [WINDOW, 1], "pads": [0, 0, WINDOW - 1, 0]}
    image = add("MaxPool", [image], "pooled", **window)
    image = add("Transpose", [image], "channels_last", perm=[0, 2, 3, 1])
    integers = add("Reshape", [image, shape], "left")
    node.input[0] = add("DequantizeLinear", [integers, *source.input[1:]], "values")
    node.input[1] = first
    return nodes
