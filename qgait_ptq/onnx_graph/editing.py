"""Edits of an ONNX graph that leave no unused nodes or initializers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
from onnx import helper


def make_node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node with one output, named ``output.operator``."""
    return helper.make_node(operator, inputs, [output], name=f"{output}.{operator}", **attributes)


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph.

    Nodes that lead to no output are left out, and unused initializers are removed.

    Args:
        graph: graph to change in place.
        nodes: all new nodes, in topological order.
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
    """Replace the input `old` of nodes by `new`."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
