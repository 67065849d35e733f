"""Rules of targets, which are checked by reading the finished file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qgait_ptq.errors import ExportError
from qgait_ptq.onnx_graph.view import OnnxGraph
from qgait_ptq.targets.target import Target

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = frozenset({"Conv", "Gemm"})
CASTS = frozenset({"Cast"})
INTEGER_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"})


@dataclass(frozen=True)
class BrokenRule:
    """A rule of a target that a file breaks.

    Attributes:
        rule: name of the rule.
        node: first node that breaks it; empty for the file as a whole.
        found: violation that was found.
    """

    rule: str
    node: str
    found: str

    def __str__(self) -> str:
        where = f" at {self.node}" if self.node else ""
        return f"{self.rule}{where}: {self.found}"


def check_rules(model: onnx.ModelProto, target: Target) -> None:
    """Refuse a file that breaks a rule of its target.

    Raises:
        ExportError: the file breaks rules. The error names the first violation of each.
    """
    broken = find_broken_rules(model, target)
    if broken:
        raise ExportError(f"the file breaks rules of target {target.name}: " + "; ".join(map(str, broken)))


def find_broken_rules(model: onnx.ModelProto, target: Target) -> list[BrokenRule]:
    """Return the first violation of each rule."""
    graph = _QdqGraph(model)
    return [broken for rule in RULES if (broken := next(rule(graph, target), None)) is not None]


class _QdqGraph(OnnxGraph):
    """A graph with access to the parameters of its Q and DQ nodes."""

    def zero_point(self, node: onnx.NodeProto) -> NDArray[Any] | None:
        """Return the zero-point of a Q or DQ node, uint8 zero by default; None if it is computed."""
        given = len(node.input) > 2 and node.input[2]
        return self.constants.get(node.input[2]) if given else np.zeros((), np.uint8)

    def source(self, name: str) -> onnx.NodeProto | None:
        """Return the node that gives a tensor, before casts of constants and clips of integers."""
        node = self.producer(name)
        while node is not None and node.op_type in ("Cast", "Clip"):
            node = self.producer(node.input[0])
        return node

    def stored_type(self, name: str) -> int | None:
        """Return the element type of a stored tensor, also before a Cast; None if it is computed."""
        stored = self.initializer(name, through=CASTS)
        return None if stored is None else int(stored.data_type)

    def activations(self) -> Iterator[onnx.NodeProto]:
        """Yield the Q and DQ nodes of computed tensors."""
        yield from self.nodes_of(QUANTIZE)
        yield from (node for node in self.nodes_of(DEQUANTIZE) if self.stored_type(node.input[0]) is None)

    def weights(self) -> Iterator[tuple[onnx.NodeProto, int]]:
        """Yield the DQ nodes of stored tensors other than int32, each with the stored type."""
        for node in self.nodes_of(DEQUANTIZE):
            stored = self.stored_type(node.input[0])
            if stored not in (None, TensorProto.INT32):
                yield node, stored


def _opset(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    if graph.opset > target.opset:
        yield BrokenRule("opset", "", f"{graph.opset}; at most {target.opset} is supported")


def _activation_type(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    wanted = TensorProto.INT8 if target.rules.activation_signed else TensorProto.UINT8
    for node in graph.activations():
        zero_point = graph.zero_point(node)
        found = wanted if zero_point is None else helper.np_dtype_to_tensor_dtype(zero_point.dtype)
        # Byte inputs are uint8 for every target, whatever the type of activations.
        if found != wanted and node.input[0] not in graph.inputs:
            yield BrokenRule("type of activations", node.name, f"{_type(found)} instead of {_type(wanted)}")


def _activation_zero_point(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    if target.rules.activation_symmetric:
        for node in graph.activations():
            zero_point = graph.zero_point(node)
            if zero_point is None or np.any(zero_point.astype(np.int64) != 0):
                yield BrokenRule("zero-points are zero", node.name, "the zero-point is not zero")


def _activation_scale(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    for node in graph.activations():
        stored = graph.constants.get(node.input[1])
        if stored is None:
            yield BrokenRule("one positive scale for an activation", node.name, "the scale is computed")
            continue
        scale = stored.astype(np.float64)
        if scale.ndim != 0 or not (np.isfinite(scale) and scale > 0):
            yield BrokenRule("one positive scale for an activation", node.name, str(scale))


def _narrow_activations(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    for node in graph.nodes_of("Clip"):
        source = graph.producer(node.input[0])
        is_narrow = source is not None and source.op_type == QUANTIZE
        if is_narrow and target.storage.narrowest_activations == 8:
            yield BrokenRule("activations have 8 bits", node.name, "fewer")


def _weight_type(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    allowed = {TensorProto.INT8} | ({TensorProto.INT4} if target.storage.int4_weights else set())
    for node, found in graph.weights():
        if found not in allowed:
            yield BrokenRule("type of weights", node.name, f"{_type(found)} is not supported")
        elif found == TensorProto.INT4 and node.input[0] in graph.initializers:
            # Measured in onnxruntime: without the Cast, the convolution is computed in float.
            yield BrokenRule("int4 weights are cast to int8", node.name, "the weight has no Cast")


def _weight_zero_point(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    for node, _ in graph.weights():
        zero_point = graph.zero_point(node)
        if zero_point is None or np.any(zero_point.astype(np.int64) != 0):
            yield BrokenRule("weights are symmetric", node.name, "the zero-point is not zero")


def _bias_type(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    for node in graph.nodes_of(DEQUANTIZE):
        is_bias = graph.stored_type(node.input[0]) == TensorProto.INT32
        if is_bias and not target.storage.integer_biases:
            yield BrokenRule("biases are float32", node.name, "int32")


def _layers_read_integers(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    """Check that layers with integer weights read dequantized tensors; else they run in float silently."""
    for node in graph.nodes_of(*WEIGHTED):
        weight = graph.source(node.input[1])
        if weight is None or weight.op_type != DEQUANTIZE:
            continue
        features = graph.source(node.input[0])
        if features is None or features.op_type != DEQUANTIZE:
            reads = features.op_type if features is not None else "the input"
            yield BrokenRule("layers with integer weights read integers", node.name, f"reads {reads}")


def _integer_operators(graph: _QdqGraph, target: Target) -> Iterator[BrokenRule]:
    """Check that operators on integers are supported by the target; Q/DQ is supported by all."""
    for node in graph.nodes_of(*INTEGER_OPERATORS - target.storage.integer_operators):
        yield BrokenRule("integers stand between Q and DQ", node.name, f"{node.op_type} is not supported")


RULES: tuple[Callable[[_QdqGraph, Target], Iterator[BrokenRule]], ...] = (
    _opset,
    _activation_type,
    _activation_zero_point,
    _activation_scale,
    _narrow_activations,
    _weight_type,
    _weight_zero_point,
    _bias_type,
    _layers_read_integers,
    _integer_operators,
)


def _type(element_type: int) -> str:
    return str(helper.tensor_dtype_to_string(element_type)).removeprefix("TensorProto.").lower()
