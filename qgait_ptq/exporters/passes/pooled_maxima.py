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

WINDOW = 32  # frames in one pooling window; the reduction takes the maximum over windows
# Constants that all maxima share.
CONSTANTS = {"rows": [0, 0, 1, -1], "kept": [0, -1], "axis": [1]}
PREFIX = "qgait.pooling."


def pool_maxima(model: onnx.ModelProto) -> None:
    """Insert a MaxPool before quantized tensors are reduced over an outer axis, in place.

    onnxruntime reduces an outer axis one value at a time, but pools with vector instructions. The axis
    becomes the rows of an image, the axes after it become channels, and windows of `WINDOW` rows are pooled.
    Any size is allowed: the last window may be padded, because padding is never a maximum.

    Args:
        model: model with shapes of its inner tensors.
    """
    graph = OnnxGraph(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        source = graph.producer(node.input[0]) if node.op_type == "ReduceMax" else None
        if source is not None and source.op_type == "DequantizeLinear":
            rank = graph.rank(node.input[0]) or 0
            axes = node.input[1] if len(node.input) > 1 else ""  # without axes, all are reduced
            axis = _outer_axis(node, graph.constants.get(axes), rank)
            if axis is not None:
                nodes += _pool(node, source, axis, rank)
        nodes.append(node)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), f"{PREFIX}{name}")
        for name, value in CONSTANTS.items()
    )
    replace_nodes(model.graph, nodes)


# Opset 15 is the first whose Shape can return a part of the sizes.
POOL_MAXIMA = OnnxPass("pool-maxima", pool_maxima, Requirements(opset=15, shapes=True))


def _outer_axis(node: onnx.NodeProto, axes: NDArray[Any] | None, rank: int) -> int | None:
    """Return the reduced axis if it lies between others and is dropped; else None."""
    if axes is None or axes.size != 1 or attribute(node, "keepdims", 1):
        return None
    axis = int(axes.item()) + (rank if axes.item() < 0 else 0)
    return axis if 0 < axis < rank - 1 else None


def _pool(node: onnx.NodeProto, source: onnx.NodeProto, axis: int, rank: int) -> list[onnx.NodeProto]:
    """Return the pooling nodes, and let the reduction read their result ``[n, ⌈s / WINDOW⌉, ...]``."""
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
