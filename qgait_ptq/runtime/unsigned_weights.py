"""Layers with unsigned weights: exact where signed ones could saturate, and slower.

x86 processors without VNNI multiply two unsigned operands in 16 bits and add in 32. The integers are the
same: ``w`` with zero-point 0 becomes ``w + 128`` with zero-point 128. onnxruntime's
``session.x64quantprecision`` does the same, but for all layers, and not where layers share a weight.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qgait_ptq.exporters.nodes import replace_nodes
from qgait_ptq.reference.pair_sums import BETWEEN_QUANTIZERS

SHIFT = 128
# Where weight and its zero-point stand among the inputs.
OPERANDS = {"QLinearConv": (3, 5), "QLinearMatMul": (3, 5), "QGemm": (3, 5), "MatMulInteger": (1, 3)}


def with_unsigned_weights(model: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """Return a copy of a file in which some layers have unsigned weights; it gives the same integers.

    Args:
        model: with stored integer weights.
        layers: names of nodes, as `pair_sums.bound_pair_sums` gives them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewriting = _Rewriting(copy.graph)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        if (node.name or node.output[0]) in layers:
            nodes += rewriting.dequantized_weight(node)
        nodes.append(node)
    replace_nodes(copy.graph, nodes)
    return copy


class _Rewriting:
    """A graph whose weights get unsigned copies."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {value.name: value for value in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}

    def dequantized_weight(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Let a node read an unsigned weight; gives the nodes that must stand before it."""
        own = f"{node.name or node.output[0]}.unsigned"
        if node.op_type in OPERANDS:
            for index, kind in zip(OPERANDS[node.op_type], ("weight", "zero_point"), strict=True):
                node.input.extend([""] * (index + 1 - len(node.input)))
                node.input[index] = self._store(f"{own}_{kind}", self._value(node.input[index]))
            return []
        if node.op_type not in BETWEEN_QUANTIZERS:
            return []  # ConvInteger has the weight as its first operand, which is exact
        signed = self.producers[node.input[1]]
        scale = numpy_helper.to_array(self.constants[signed.input[1]])
        zero_point = self._value(signed.input[2]) if len(signed.input) > 2 else np.zeros(scale.shape, np.int8)
        weight = self._store(f"{own}_weight", self._value(signed.input[0]))
        zeros = self._store(f"{own}_zero_point", zero_point)
        unsigned = helper.make_node(
            signed.op_type, [weight, signed.input[1], zeros], [f"{own}_values"], f"{own}.{signed.op_type}"
        )
        unsigned.attribute.extend(signed.attribute)
        node.input[1] = unsigned.output[0]
        return [unsigned]

    def _value(self, name: str) -> NDArray[np.int8]:
        """A stored tensor of int8 numbers, also behind a Cast; zero where an input is left out."""
        source = self.producers.get(name)
        stored = source.input[0] if source is not None else name
        value = numpy_helper.to_array(self.constants[stored]) if stored else np.zeros((), np.int8)
        return np.asarray(value.astype(np.int8))

    def _store(self, name: str, signed: NDArray[np.int8]) -> str:
        unsigned = (signed.astype(np.int16) + SHIFT).astype(np.uint8)
        self.graph.initializer.append(numpy_helper.from_array(unsigned, name))
        return name
