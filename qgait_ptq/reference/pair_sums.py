"""Proof from a file that it gives the same integer sums on every processor.

Some x86 kernels add two neighbouring products in 16 bits, see `quantizer.pair_order`. For each layer with
integer weights, the proof bounds the largest pair sum of any input by the weights and by the largest
activation code. It also works for files of other tools, and needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qgait_ptq.onnx_graph.view import OnnxGraph, attribute
from qgait_ptq.quantizer.pair_order import INT16_MAX, first_of_pairs

LARGEST_BYTE = 255
# Index of the weight among the inputs of integer operators.
WEIGHT_INPUTS = {"QLinearConv": 3, "ConvInteger": 1, "QLinearMatMul": 3, "MatMulInteger": 1, "QGemm": 3}
CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvInteger"})
BETWEEN_QUANTIZERS = frozenset({"Conv", "Gemm", "MatMul"})
# Operators whose output codes are codes of their first input.
MOVING = frozenset(
    {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Flatten", "Identity", "MaxPool", "Gather"}
)


@dataclass(frozen=True)
class PairBound:
    """The largest sum of two neighbouring products in a layer.

    Attributes:
        layer: name of the node.
        operator: operator of the node.
        worst_pair: largest sum of the magnitudes of two neighbouring weights of the same sign.
        largest_code: largest activation code that the layer can receive.
        depthwise: whether each channel is convolved separately; such kernels do not add in 16 bits.
    """

    layer: str
    operator: str
    worst_pair: int
    largest_code: int
    depthwise: bool = False

    @property
    def bound(self) -> int:
        """Return the largest pair sum that an input can cause."""
        return self.worst_pair * self.largest_code

    @property
    def safe(self) -> bool:
        """Return whether no input can make a 16-bit sum saturate."""
        return self.depthwise or self.bound <= INT16_MAX


@dataclass(frozen=True)
class PairSums:
    """The bounds of a file.

    Attributes:
        layers: bounds of layers with stored integer weights, in graph order.
        unknown: integer layers whose weight is not stored in the file, so that nothing is proven.
    """

    layers: tuple[PairBound, ...]
    unknown: tuple[str, ...] = ()

    @property
    def unsafe(self) -> tuple[PairBound, ...]:
        """Return the layers whose sums can saturate."""
        return tuple(layer for layer in self.layers if not layer.safe)

    @property
    def safe(self) -> bool:
        """Return whether the file is proven to give the same integer sums on every processor."""
        return not self.unsafe and not self.unknown

    def verdict(self) -> str:
        """Return the result of the proof as one sentence."""
        if self.safe:
            return "the same integer sums on every processor"
        names = [layer.layer for layer in self.unsafe] + list(self.unknown)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        proven = (
            "not proven" if not self.unsafe else "16-bit sums can saturate on x86 processors without VNNI"
        )
        return f"{proven}: {shown}"

    def describe(self) -> dict[str, Any]:
        """Return the entries for a report and for a file's metadata."""
        return {
            "safe": self.safe,
            "largest_bound": max((layer.bound for layer in self.layers if not layer.depthwise), default=0),
            "unsafe_layers": [layer.layer for layer in self.unsafe],
            "unknown_layers": list(self.unknown),
        }


def bound_pair_sums(model: onnx.ModelProto) -> PairSums:
    """Bound the pair sums of each layer of a file."""
    graph = OnnxGraph(model)
    layers, unknown = [], []
    for node in graph.nodes:
        integer = _integer_inputs(node, graph)
        if integer is None:
            continue
        codes, stored = integer
        name = node.name or node.output[0]
        weight = _stored_weight(stored, graph)
        if weight is None:
            unknown.append(name)
            continue
        if weight.dtype == np.uint8:
            continue  # kernels of two unsigned operands multiply in 16 bits and add in 32
        worst, depthwise = _worst_pair(node, weight.astype(np.int64))
        layers.append(PairBound(name, node.op_type, worst, _largest_code(codes, graph), depthwise))
    return PairSums(tuple(layers), tuple(unknown))


def _integer_inputs(node: onnx.NodeProto, graph: OnnxGraph) -> tuple[str, str] | None:
    """Return the names of activation codes and integer weight; None if a node is not an integer layer."""
    if node.op_type in WEIGHT_INPUTS:
        return node.input[0], node.input[WEIGHT_INPUTS[node.op_type]]
    if node.op_type not in BETWEEN_QUANTIZERS:
        return None
    activation, weight = (producer_of_moved(name, graph) for name in node.input[:2])
    if activation is None or weight is None:
        return None
    if {activation.op_type, weight.op_type} != {"DequantizeLinear"}:
        return None
    direct = weight.output[0] == node.input[1]  # a moved weight has other neighbours
    return activation.input[0], weight.input[0] if direct else ""


def producer_of_moved(name: str, graph: OnnxGraph) -> onnx.NodeProto | None:
    """Return the node that computes a tensor's values; other nodes may move them behind it.

    Runtimes exchange such nodes with a DequantizeLinear before them, so that a layer behind runs on integers.
    """
    node = graph.producer(name)
    while node is not None and node.op_type in MOVING:
        node = graph.producer(node.input[0])
    return node


def _stored_weight(name: str, graph: OnnxGraph) -> NDArray[Any] | None:
    """Return a stored tensor, also after a Cast; None if the tensor is computed."""
    stored = graph.initializer(name, through=("Cast", "Identity"))
    if stored is None:
        return None
    value = graph.constants[stored.name]
    # INT4 codes have the same numbers as int8.
    return value if value.dtype in (np.uint8, np.int8) else value.astype(np.int8)


def _worst_pair(node: onnx.NodeProto, weight: NDArray[np.int64]) -> tuple[int, bool]:
    """Return the worst pair of a layer, and whether it convolves each channel separately."""
    if node.op_type in CONVOLUTIONS:
        groups = int(attribute(node, "group", 1))
        depthwise = groups > 1 and weight.shape[:2] == (groups, 1)
        return worst_pair(weight), depthwise
    if not attribute(node, "transB", 0):
        weight = np.swapaxes(weight, -1, -2) if weight.ndim > 1 else weight[None]
    return worst_pair(weight.reshape(-1, weight.shape[-1])), False


def _largest_code(name: str, graph: OnnxGraph) -> int:
    """Return the largest code of a tensor. Runtimes move int8 codes into uint8."""
    if name in graph.constants:
        value = graph.constants[name]
        return int(value.max(initial=0)) + (128 if value.dtype == np.int8 else 0)
    node = graph.producer(name)
    if node is None or name in graph.inputs:
        return LARGEST_BYTE
    if node.op_type in MOVING:
        return _largest_code(node.input[0], graph)
    if node.op_type == "Clip" and len(node.input) > 2 and node.input[2] in graph.constants:
        high = graph.constants[node.input[2]]
        return int(high) + (128 if high.dtype == np.int8 else 0)
    return LARGEST_BYTE


def worst_pair(weight: NDArray[np.int64]) -> int:
    """Return the largest sum of the magnitudes of two neighbouring weights of the same sign.

    Args:
        weight: weight ``[o, i, *kernel]`` of a convolution, or ``[o, i]``.
    """
    channels, taps = weight.shape[1], math.prod(weight.shape[2:])
    ordered = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    worst = int(np.abs(ordered).max(initial=0))  # beside a zero
    for sums in _pair_sums(ordered, channels, taps):
        worst = max(worst, int(sums.max(initial=0)))
    return worst


def _pair_sums(ordered: NDArray[np.int64], channels: int, taps: int) -> Iterator[NDArray[np.int64]]:
    for first in first_of_pairs(channels, taps):
        indices = np.array(first, np.int64)
        one, other = ordered[:, indices], ordered[:, indices + 1]
        yield np.where(one * other > 0, np.abs(one + other), 0)
