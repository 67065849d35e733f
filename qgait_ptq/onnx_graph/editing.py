"""Edits of an ONNX graph that leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
from onnx import helper


def make_node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node of one output, named ``output.operator``."""
    return helper.make_node(operator, inputs, [output], name=f"{output}.{operator}", **attributes)


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Put nodes in place of a graph's; those that lead to no output are left out.

    Initializers that nothing reads any more go, too.

    Args:
        graph: changed in place.
        nodes: all nodes that it has afterwards, in topological order.
    """
    used = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if used.intersection(node.output):
            kept.append(node)
            used.update(node.input)
    initializers = [value for value in graph.initializer if value.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)


def replace_reads(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Let nodes read another tensor wherever they read one."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
