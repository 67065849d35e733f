"""Maxima over frames in halves, for runtimes whose reduction of an outer axis is slow."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qgait_ptq.export.nodes import replace_nodes

HALVINGS = 5  # up to 32 frames meet in elementwise maxima alone
CONSTANTS = {"zero": 0, "one": 1, "two": 2, "end": np.iinfo(np.int64).max}
PREFIX = "qgait.halves."  # of their names; all maxima share them


def halve_maxima(model: onnx.ModelProto) -> None:
    """Let quantized tensors meet in elementwise maxima of halves before they are reduced, in place.

    onnxruntime reduces an outer axis one value at a time, but compares whole tensors with vector
    instructions. Of s frames, the first and the last ``⌈s/2⌉`` are compared; they may share one, which does
    not change a maximum. So any s is right, and what is left after `HALVINGS` goes through the reduction.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    typed = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in typed}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        source = producers.get(node.input[0]) if node.op_type == "ReduceMax" else None
        if source is not None and source.op_type == "DequantizeLinear":
            shape = shapes.get(node.input[0], [])  # 0 where any size is taken
            axis = _outer_axis(constants.get(node.input[1]), len(shape))
            if axis is not None:
                needed = (shape[axis] - 1).bit_length() if shape[axis] else HALVINGS
                nodes += _halve(node, source, axis, min(needed, HALVINGS))
        nodes.append(node)
    graph.initializer.extend(
        numpy_helper.from_array(np.array([value], np.int64), f"{PREFIX}{name}")
        for name, value in CONSTANTS.items()
    )
    replace_nodes(graph, nodes)


def _outer_axis(axes: np.ndarray[Any, Any] | None, rank: int) -> int | None:
    """The one axis that is reduced, if others are behind it."""
    if axes is None or axes.size != 1:
        return None
    axis = int(axes.item()) + (rank if axes.item() < 0 else 0)
    return axis if 0 <= axis < rank - 1 else None


def _halve(node: onnx.NodeProto, source: onnx.NodeProto, axis: int, times: int) -> list[onnx.NodeProto]:
    """The nodes in front of a reduction, which reads their result instead."""
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        result = f"{node.output[0]}.{output}"
        nodes.append(helper.make_node(operator, inputs, [result], f"{result}.{operator}", **attributes))
        return result

    zero, one, two, end = (f"{PREFIX}{name}" for name in CONSTANTS)
    integers = source.input[0]
    axes = add("Constant", [], "axis", value_ints=[axis])
    size = add("Shape", [integers], "size", start=axis, end=axis + 1)
    for step in range(times):
        rounded_up = add("Add", [size, one], f"size_{step}.odd")
        size = add("Div", [rounded_up, two], f"size_{step}")
        start = add("Neg", [size], f"start_{step}")
        first = add("Slice", [integers, zero, size, axes], f"first_{step}")
        last = add("Slice", [integers, start, end, axes], f"last_{step}")
        integers = add("Max", [first, last], f"halves_{step}")
    node.input[0] = add("DequantizeLinear", [integers, *source.input[1:]], "values")
    return nodes
