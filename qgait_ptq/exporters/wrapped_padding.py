"""Circular padding as slices, because OpenVINO has no Pad of this mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qgait_ptq.onnx_graph.editing import make_node, replace_nodes
from qgait_ptq.onnx_graph.view import OnnxGraph, attribute

LAST = np.iinfo(np.int64).max  # end of a slice that reaches to the end of its axis


def slice_wrapped_padding(model: onnx.ModelProto) -> None:
    """Replace each circular padding of constant widths by the ends of its axes, in place.

    Along each axis, the last values are joined before the first ones, and the first behind the last. The axis
    can have any size that is not smaller than the padding. OpenVINO 2026.4 has no Pad with the mode ``wrap``.
    """
    graph = OnnxGraph(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        widths = _widths(node, graph.constants) if _is_circular(node) else None
        if widths is None:
            nodes.append(node)
            continue
        source = node.input[0]
        if not widths:
            nodes.append(make_node("Identity", [source], node.output[0]))
        for count, (axis, sides) in enumerate(widths.items(), 1):
            output = node.output[0] if count == len(widths) else f"{node.output[0]}.axis{axis}"
            nodes += _wrap(model, source, axis, sides, output)
            source = output
    replace_nodes(model.graph, nodes)


def _is_circular(node: onnx.NodeProto) -> bool:
    return node.op_type == "Pad" and attribute(node, "mode") == b"wrap"


def _widths(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> dict[int, tuple[int, int]] | None:
    """Return the widths before and behind each padded axis; None if they are computed, or remove values."""
    pads = constants.get(node.input[1])
    axes = constants.get(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    if pads is None or pads.min(initial=0) < 0 or (len(node.input) > 3 and node.input[3] and axes is None):
        return None
    count = pads.size // 2
    sides = zip(pads[:count].tolist(), pads[count:].tolist(), strict=True)
    named = range(count) if axes is None else axes.tolist()
    return {axis: pair for axis, pair in zip(named, sides, strict=True) if any(pair)}


def _wrap(
    model: onnx.ModelProto, source: str, axis: int, sides: tuple[int, int], output: str
) -> list[onnx.NodeProto]:
    """Return the nodes that pad one axis, and store their constants."""
    before, behind = sides
    bounds = {"before": (-before, LAST)} if before else {}
    bounds |= {"behind": (0, behind)} if behind else {}
    nodes, pieces = [], {"middle": source}
    for side, ends in bounds.items():
        pieces[side] = f"{output}.{side}"
        inputs = [f"{pieces[side]}.{name}" for name in ("start", "end", "axis")]
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in zip(inputs, (*ends, axis), strict=True)
        )
        nodes.append(make_node("Slice", [source, *inputs], pieces[side]))
    order = [pieces[side] for side in ("before", "middle", "behind") if side in pieces]
    return [*nodes, make_node("Concat", order, output, axis=axis)]
