"""Changing the nodes of an ONNX graph, without leftovers."""

from __future__ import annotations

from collections.abc import Sequence

import onnx


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Put nodes in place of a graph's, in topological order; those that lead nowhere are left out.

    Initializers that nothing reads any more go, too.
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
