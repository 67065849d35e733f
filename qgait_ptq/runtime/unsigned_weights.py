"""Layers with unsigned weights: exact on processors where signed weights can saturate, but slower.

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

from qgait_ptq.onnx_graph.editing import replace_nodes
from qgait_ptq.onnx_graph.view import OnnxGraph
from qgait_ptq.reference.pair_sums import BETWEEN_QUANTIZERS

SHIFT = 128
# Indices of the inputs with the weight and its zero-point.
OPERANDS = {"QLinearConv": (3, 5), "QLinearMatMul": (3, 5), "QGemm": (3, 5), "MatMulInteger": (1, 3)}


def with_unsigned_weights(model: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """Return a copy of a file in which some layers have unsigned weights. The integers are the same.

    Args:
        model: file with stored integer weights.
        layers: names of nodes, as in the result of `pair_sums.bound_pair_sums`.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = OnnxGraph(copy)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if (node.name or node.output[0]) in layers:
            added, constants = _read_unsigned(node, graph)
            copy.graph.initializer.extend(constants)
            nodes += added
        nodes.append(node)
    replace_nodes(copy.graph, nodes)
    return copy


def _read_unsigned(
    node: onnx.NodeProto, graph: OnnxGraph
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Give a node an unsigned weight. Return the nodes to insert before it, and their constants."""
    own = f"{node.name or node.output[0]}.unsigned"
    if node.op_type in OPERANDS:
        constants = []
        for index, kind in zip(OPERANDS[node.op_type], ("weight", "zero_point"), strict=True):
            node.input.extend([""] * (index + 1 - len(node.input)))
            constants.append(_unsigned(f"{own}_{kind}", _signed(node.input[index], graph)))
            node.input[index] = constants[-1].name
        return [], constants
    if node.op_type not in BETWEEN_QUANTIZERS:
        return [], []  # ConvInteger has the weight as its first operand, which is exact
    signed = graph.producer(node.input[1])
    if signed is None:
        raise ValueError(f"{node.input[1]}: the integer weight of a layer has no DequantizeLinear")
    scale = graph.constants[signed.input[1]]
    zero_point = _signed(signed.input[2], graph) if len(signed.input) > 2 else np.zeros(scale.shape, np.int8)
    weight = _unsigned(f"{own}_weight", _signed(signed.input[0], graph))
    zeros = _unsigned(f"{own}_zero_point", zero_point)
    dequantized = helper.make_node(
        signed.op_type,
        [weight.name, signed.input[1], zeros.name],
        [f"{own}_values"],
        f"{own}.{signed.op_type}",
    )
    dequantized.attribute.extend(signed.attribute)
    node.input[1] = dequantized.output[0]
    return [dequantized], [weight, zeros]


def _signed(name: str, graph: OnnxGraph) -> NDArray[np.int8]:
    """Return a stored int8 tensor, also if a Cast reads it; zero for an omitted input."""
    source = graph.producer(name)
    stored = source.input[0] if source is not None else name
    value = graph.constants[stored] if stored else np.zeros((), np.int8)
    return np.asarray(value.astype(np.int8))


def _unsigned(name: str, signed: NDArray[np.int8]) -> onnx.TensorProto:
    return numpy_helper.from_array((signed.astype(np.int16) + SHIFT).astype(np.uint8), name)
