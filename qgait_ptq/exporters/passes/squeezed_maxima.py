"""Maxima that keep their axis, for OpenVINO: it rounds before it scales where a maximum drops an axis."""

from __future__ import annotations

import onnx
from onnx import helper

from qgait_ptq.exporters.passes.onnx_pass import OnnxPass
from qgait_ptq.onnx_graph.editing import make_node, replace_nodes
from qgait_ptq.onnx_graph.view import attribute


def squeeze_maxima(model: onnx.ModelProto) -> None:
    """Let each maximum keep its axes, and drop them behind it, in place.

    OpenVINO 2026.4 fuses the quantizer behind a maximum into it, and then rounds the maximum to an integer
    before it is divided by the scale. A node between them prevents this.
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "ReduceMax" or len(node.input) < 2 or attribute(node, "keepdims", 1):
            continue
        output = node.output[0]
        kept = [entry for entry in node.attribute if entry.name != "keepdims"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("keepdims", 1)])
        node.output[0] = f"{output}.kept"
        nodes.append(make_node("Squeeze", [node.output[0], node.input[1]], output))
    replace_nodes(model.graph, nodes)


SQUEEZE_MAXIMA = OnnxPass("squeeze-maxima", squeeze_maxima)
