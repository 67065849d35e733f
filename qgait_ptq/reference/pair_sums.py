"""The proof that a file gives the same integer sums on every processor, read from the file itself.

Some x86 kernels add two neighbouring products in 16 bits, see `quantizer.pair_order`. For each layer with
integer weights, the largest sum that any input can cause is bounded from its weights and from the largest
activation code that it can receive. Also for files that this toolkit did not write. Needs no torch.
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
# Where the weight stands among the inputs of operators on integers, and its zero-point.
WEIGHT_INPUTS = {"QLinearConv": 3, "ConvInteger": 1, "QLinearMatMul": 3, "MatMulInteger": 1, "QGemm": 3}
CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvInteger"})
BETWEEN_QUANTIZERS = frozenset({"Conv", "Gemm", "MatMul"})
# They give codes that their first input has.
MOVING = frozenset(
    {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Flatten", "Identity", "MaxPool", "Gather"}
)


@dataclass(frozen=True)
class PairBound:
    """The largest sum of two neighbouring products in a layer.

    Attributes:
        layer: name of the node.
        operator: of the node.
        worst_pair: largest sum of the magnitudes of two neighbouring weights of the same sign.
        largest_code: largest activation code that the layer can receive.
        depthwise: each channel is convolved by itself; such kernels do not add in 16 bits.
    """

    layer: str
    operator: str
    worst_pair: int
    largest_code: int
    depthwise: bool = False

    @property
    def bound(self) -> int:
        """Largest sum that an input can cause."""
        return self.worst_pair * self.largest_code

    @property
    def safe(self) -> bool:
        """Whether no input can make a 16-bit sum saturate."""
        return self.depthwise or self.bound <= INT16_MAX


@dataclass(frozen=True)
class PairSums:
    """The bounds of a file.

    Attributes:
        layers: those with stored integer weights, in graph order.
        unknown: layers on integers whose weight is not stored in the file; nothing is proven of them.
    """

    layers: tuple[PairBound, ...]
    unknown: tuple[str, ...] = ()

    @property
    def unsafe(self) -> tuple[PairBound, ...]:
        """Layers whose sums can saturate."""
        return tuple(layer for layer in self.layers if not layer.safe)

    @property
    def safe(self) -> bool:
        """Whether the file is proven to give the same integer sums on every processor."""
        return not self.unsafe and not self.unknown

    def verdict(self) -> str:
        """One sentence for people."""
        if self.safe:
            return "the same integer sums on every processor"
        names = [layer.layer for layer in self.unsafe] + list(self.unknown)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        proven = (
            "not proven" if not self.unsafe else "16-bit sums can saturate on x86 processors without VNNI"
        )
        return f"{proven}: {shown}"

    def describe(self) -> dict[str, Any]:
        """What a report and a file's metadata say."""
        return {
            "safe": self.safe,
            "largest_bound": max((layer.bound for layer in self.layers if not layer.depthwise), default=0),
            "unsafe_layers": [layer.layer for layer in self.unsafe],
            "unknown_layers": list(self.unknown),
        }


def bound_pair_sums(model: onnx.ModelProto) -> PairSums:
    """Bound the sums of two neighbouring products in each layer of a file."""
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
    """Names of the activation codes and of the integer weight; None where a node is not on integers."""
    if node.op_type in WEIGHT_INPUTS:
        return node.input[0], node.input[WEIGHT_INPUTS[node.op_type]]
    if node.op_type not in BETWEEN_QUANTIZERS:
        return None
    given, weight = (graph.producer(name) for name in node.input[:2])
    if given is None or weight is None or {given.op_type, weight.op_type} != {"DequantizeLinear"}:
        return None
    return given.input[0], weight.input[0]


def _stored_weight(name: str, graph: OnnxGraph) -> NDArray[Any] | None:
    """A stored tensor, or what a Cast makes of one; None where it is computed."""
    stored = graph.initializer(name, through=("Cast", "Identity"))
    if stored is None:
        return None
    value = graph.constants[stored.name]
    # INT4 codes; the numbers are the same as int8.
    return value if value.dtype in (np.uint8, np.int8) else value.astype(np.int8)


def _worst_pair(node: onnx.NodeProto, weight: NDArray[np.int64]) -> tuple[int, bool]:
    """The worst pair of a layer, and whether it convolves each channel by itself."""
    if node.op_type in CONVOLUTIONS:
        groups = int(attribute(node, "group", 1))
        depthwise = groups > 1 and weight.shape[:2] == (groups, 1)
        return worst_pair(weight), depthwise
    if not attribute(node, "transB", 0):
        weight = np.swapaxes(weight, -1, -2) if weight.ndim > 1 else weight[None]
    return worst_pair(weight.reshape(-1, weight.shape[-1])), False


def _largest_code(name: str, graph: OnnxGraph) -> int:
    """Largest code that a tensor can hold; int8 codes are moved into uint8 by the runtimes."""
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
        weight: ``[o, i, *kernel]`` as a convolution has it, or ``[o, i]``.
    """
    channels, taps = weight.shape[1], math.prod(weight.shape[2:])
    ordered = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    worst = int(np.abs(ordered).max(initial=0))  # beside a zero
    for sums in _pair_sums(ordered, channels, taps):
        worst = max(worst, int(sums.max(initial=0)))
    return worst


def _pair_sums(ordered: NDArray[np.int64], channels: int, taps: int) -> Iterator[NDArray[np.int64]]:
    for first in first_of_pairs(channels, taps):
        places = np.array(first, np.int64)
        one, other = ordered[:, places], ordered[:, places + 1]
        yield np.where(one * other > 0, np.abs(one + other), 0)
