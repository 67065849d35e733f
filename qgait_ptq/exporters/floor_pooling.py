"""Pooling without ceil_mode, because runtimes and ONNX's shape inference round up in ways of their own."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qgait_ptq.onnx_graph.editing import make_node, replace_nodes
from qgait_ptq.onnx_graph.view import attribute

POOLS = frozenset({"MaxPool", "AveragePool"})
REPLACED = frozenset({"ceil_mode", "pads", "count_include_pad"})


def floor_pools(model: onnx.ModelProto) -> None:
    """Replace ``ceil_mode`` of pooling by more padding behind each axis, in place, at every size.

    OpenVINO 2026.4 keeps windows that begin in the padding, and counts values behind the padding in means.
    The ONNX checker takes such a window for part of one kind of pooling, and not of the other.
    With ``min(padding + stride - 1, span of a window - 1)`` behind an axis, the windows are those of torch.
    Means count the padding of torch, so they get it as zeros, and count no other padding.
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        pads = _pads(node) if node.op_type in POOLS and attribute(node, "ceil_mode", 0) else None
        if pads is None:
            nodes.append(node)
            continue
        before, own, behind = pads
        kept = [entry for entry in node.attribute if entry.name not in REPLACED]
        if node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0) and any(before + own):
            nodes.append(_zeros_around(model, node, before, own))
            behind = [total - padding for total, padding in zip(behind, own, strict=True)]
            before = [0] * len(before)
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", [*before, *behind])])
        nodes.append(node)
    replace_nodes(model.graph, nodes)


def _pads(node: onnx.NodeProto) -> tuple[list[int], list[int], list[int]] | None:
    """Return the padding before and behind the axes, and the one behind them that replaces ``ceil_mode``.

    None if it would be as wide as a kernel, which onnxruntime refuses, or if the padding is a word.
    """
    kernel = attribute(node, "kernel_shape")
    ones = [1] * len(kernel)
    strides, dilations = attribute(node, "strides", ones), attribute(node, "dilations", ones)
    pads = attribute(node, "pads", [0] * 2 * len(kernel))
    before, own = pads[: len(kernel)], pads[len(kernel) :]
    behind = [
        min(padding + stride - 1, dilation * (entries - 1))
        for padding, stride, dilation, entries in zip(own, strides, dilations, kernel, strict=True)
    ]
    fits = all(padding < entries for padding, entries in zip(behind, kernel, strict=True))
    return (before, own, behind) if fits and attribute(node, "auto_pad", b"NOTSET") == b"NOTSET" else None


def _zeros_around(
    model: onnx.ModelProto, node: onnx.NodeProto, before: list[int], own: list[int]
) -> onnx.NodeProto:
    """Return a Pad with zeros before a pooling, which reads it from now on."""
    padded = f"{node.output[0]}.padded"
    widths = numpy_helper.from_array(np.array([0, 0, *before, 0, 0, *own], np.int64), f"{padded}.widths")
    model.graph.initializer.append(widths)
    pad = make_node("Pad", [node.input[0], widths.name], padded)
    node.input[0] = padded
    return pad
