"""The integer reference: exact computation of a Q/DQ file.

All values between two quantizers are integers. A layer sums exactly and adds its int32 bias. The sum is
converted to the output's scale as in integer kernels: to float32, times the float32 quotient
``(s_x · s_w) / s_y``, rounded half to even, plus zero-point, saturated. Floats between a DequantizeLinear and
a QuantizeLinear, such as means, are inputs, because runtimes sum them in different orders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from qgait_ptq.onnx_graph.view import OnnxGraph, attribute
from qgait_ptq.reference.arithmetic import (
    Array,
    Bent,
    Joined,
    Quantized,
    Sums,
    Terms,
    add_terms,
    quantize_floats,
    requantize,
    saturate,
)
from qgait_ptq.reference.saturating_sums import saturation_loss
from qgait_ptq.reference.windows import convolution_loss, convolve, pool

Given = Callable[[str], Array]
LEAKY_SLOPE = 0.01  # default slope of LeakyRelu
MOVING = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Gather", "Identity"})


@dataclass(frozen=True)
class Moved:
    """Floats after a node that only moves them."""

    node: onnx.NodeProto


def simulate(model: onnx.ModelProto, given: Given, *, saturating: bool = False) -> dict[str, Array]:
    """Compute the quantized tensors of a file.

    Args:
        model: model with Q/DQ nodes, as from `lower_markers`.
        given: function that returns inputs, tensors of sizes, and floats before quantizers, by name.
        saturating: whether pair sums saturate in 16 bits, as in onnxruntime on x86 processors without VNNI.

    Returns:
        Integers by tensor name: outputs of QuantizeLinear and of a Clip after it, outputs of nodes that move
        or pool these, and sums that leave a layer in float.
    """
    return _Simulation(model, given, saturating).run()


class _Simulation:
    """Computes the integers of a file. Tensors without known integers are floats."""

    def __init__(self, model: onnx.ModelProto, given: Given, saturating: bool) -> None:
        self.graph, self.given, self.saturating = OnnxGraph(model), given, saturating
        self.constants = dict(self.graph.constants)  # casts of constants are added later
        self.known: dict[str, Any] = {}
        self.integers: dict[str, Array] = {}
        self.on_integers: dict[str, Callable[[onnx.NodeProto], Array]] = {
            "Clip": self._narrow,
            "ConvInteger": self._sum,
            "MaxPool": lambda node: pool(node, self.integers[node.input[0]]),
            "Reshape": lambda node: self._reshape(node, self.integers[node.input[0]]),
            "Transpose": lambda node: self.integers[node.input[0]].transpose(attribute(node, "perm")),
        }
        self.handlers: dict[str, Callable[[onnx.NodeProto, Any], Any]] = {
            "Conv": self._convolve,
            "Gemm": self._multiply,
            "Relu": self._rectify,
            "LeakyRelu": self._bend,
            "Add": self._add,
            "Concat": self._concatenate,
            "MaxPool": self._pool,
            "ReduceMax": self._reduce,
            "Reshape": lambda node, x: self._move(x, self._reshape(node, x.integers)),
            "Transpose": lambda node, x: self._move(x, x.integers.transpose(attribute(node, "perm"))),
            "Unsqueeze": lambda node, x: self._move(x, np.expand_dims(x.integers, self._axes(node) or ())),
            "Squeeze": lambda node, x: self._move(x, np.squeeze(x.integers, self._axes(node))),
            "Slice": lambda node, x: self._move(x, self._slice(node, x.integers)),
            "Gather": self._gather,
            "Identity": lambda node, x: x,
        }

    def run(self) -> dict[str, Array]:
        for node in self.graph.nodes:
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantize(node)
            elif node.input and node.input[0] in self.integers and node.op_type in self.on_integers:
                self.integers[node.output[0]] = self.on_integers[node.op_type](node)
            elif node.op_type == "Gather" and _is_bytes(self.constants.get(node.input[0])):
                self.integers[node.output[0]] = self.constants[node.input[0]][self.given(node.input[1])]
            elif node.op_type == "Cast" and node.input[0] in self.constants:
                # A cast of INT4 codes does not change the numbers.
                self.constants[node.output[0]] = self.constants[node.input[0]].astype(np.int8)
            elif node.input and node.op_type in self.handlers:
                value = self._computed(node)
                if value is not None:
                    self.known[node.output[0]] = value
        return self.integers

    def _computed(self, node: onnx.NodeProto) -> Any:
        """Return the output of a node for a known input, or for floats that it only moves."""
        if node.input[0] in self.known:
            value = self.known[node.input[0]]
            if isinstance(value, Bent) and node.op_type in MOVING:  # a LeakyReLU commutes with the move
                return replace(value, source=self.handlers[node.op_type](node, value.source))
            is_moved = node.op_type in MOVING and isinstance(value, Terms | Joined)
            if not isinstance(value, Moved) and not is_moved:
                return self.handlers[node.op_type](node, value)
        return Moved(node) if node.op_type in MOVING else None

    def _quantize(self, node: onnx.NodeProto) -> None:
        scale, zero_point = self.constants[node.input[1]], self.constants[node.input[2]]
        value = self.known.get(node.input[0])
        if isinstance(value, Quantized) and (value.scale, value.zero_point) == (scale, zero_point):
            integers = value.integers
        else:
            integers = self._requantized(node.input[0], value, scale, zero_point)
        self.integers[node.output[0]] = integers

    def _requantized(self, name: str, value: Any, scale: Array, zero_point: Array) -> Array:
        """Return the integers of a quantizer for any kind of input."""
        if value is None or isinstance(value, Moved):
            return quantize_floats(self._floats(name), scale, zero_point)
        if isinstance(value, Terms):
            return saturate(add_terms(value, scale, zero_point), zero_point.dtype)
        return saturate(requantize(value, scale) + np.float64(zero_point), zero_point.dtype)

    def _dequantize(self, node: onnx.NodeProto) -> None:
        name = node.input[0]
        stored = self.constants.get(name)
        integers = stored if stored is not None else self.integers.get(name)
        if integers is None:  # uint8 input of the network
            integers = self.given(name)
        scale, zero_point = self.constants[node.input[1]], self.constants[node.input[2]]
        self.known[node.output[0]] = Quantized(integers, scale, zero_point)

    def _floats(self, name: str) -> Array:
        """Return floats before they were moved, because the runtime can quantize them there."""
        moved = self.known.get(name)
        if not isinstance(moved, Moved):
            return self._constant(name)
        source = Quantized(self._floats(moved.node.input[0]), np.ones((), np.float32), np.zeros((), np.int64))
        return np.asarray(self.handlers[moved.node.op_type](moved.node, source).integers)

    def _narrow(self, node: onnx.NodeProto) -> Array:
        low, high = (self.constants[name] if name else None for name in node.input[1:3])
        return np.clip(self.integers[node.input[0]], low, high)

    def _sum(self, node: onnx.NodeProto) -> Array:
        one, zero = np.ones((), np.float32), np.zeros((), np.int8)
        x = Quantized(self.integers[node.input[0]], one, self.constants[node.input[2]])
        weight = Quantized(self.constants[node.input[1]], one, zero)
        return convolve(node, x, weight, np.zeros(len(weight.integers)))

    def _layer(self, node: onnx.NodeProto) -> tuple[Quantized, Array] | None:
        """Return weight and bias of a layer; None if it computes in float."""
        weight = self.known.get(node.input[1])
        if not isinstance(weight, Quantized):
            return None
        bias = self.known.get(node.input[2]) if len(node.input) > 2 else None
        if isinstance(bias, Quantized):
            return weight, bias.centred()
        return (weight, np.zeros(len(weight.integers))) if len(node.input) < 3 else None

    def _convolve(self, node: onnx.NodeProto, x: Any) -> Sums | None:
        layer = self._layer(node)
        if layer is None or not isinstance(x, Quantized):
            return None
        weight, bias = layer
        sums = convolve(node, x, weight, bias)
        if self.saturating:
            sums = sums + convolution_loss(node, x, weight)
        return Sums(sums, x.scale * weight.scale)

    def _multiply(self, node: onnx.NodeProto, x: Any) -> Sums | None:
        layer = self._layer(node)
        alpha, beta = (np.float32(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
        plain = attribute(node, "transB", 0) and not attribute(node, "transA", 0)
        plain = plain and (len(node.input) < 3 or alpha == beta == 1)
        if layer is None or not isinstance(x, Quantized) or not plain:
            return None
        weight, bias = layer
        sums = x.centred() @ weight.centred().T + bias
        if self.saturating:
            sums = sums + saturation_loss(x.integers, weight.integers, (), (), 1)
        return Sums(sums, alpha * x.scale * weight.scale)

    def _rectify(self, node: onnx.NodeProto, x: Any) -> Any:
        if isinstance(x, Sums):
            return replace(x, integers=np.maximum(x.integers, 0))
        if isinstance(x, Terms):
            return replace(x, rectified=True)
        if isinstance(x, Quantized):
            return replace(x, integers=np.maximum(x.integers, x.zero_point))
        return None

    def _bend(self, node: onnx.NodeProto, x: Any) -> Bent | None:
        return (
            Bent(x, np.float32(attribute(node, "alpha", LEAKY_SLOPE))) if isinstance(x, Quantized) else None
        )

    def _add(self, node: onnx.NodeProto, x: Any) -> Terms | None:
        other = self.known.get(node.input[1])
        if not (isinstance(x, Quantized) and isinstance(other, Quantized)):
            return None
        return Terms(x, other)

    def _concatenate(self, node: onnx.NodeProto, x: Any) -> Joined | None:
        pieces = [self.known.get(name) for name in node.input]
        if not all(isinstance(piece, Quantized) for piece in pieces):
            return None
        return Joined(pieces, attribute(node, "axis"))  # type: ignore[arg-type]

    def _pool(self, node: onnx.NodeProto, x: Any) -> Quantized | None:
        return self._move(x, pool(node, x.integers)) if isinstance(x, Quantized) else None

    def _reduce(self, node: onnx.NodeProto, x: Any) -> Quantized | None:
        if not isinstance(x, Quantized):
            return None
        axes = self._axes(node)
        if axes is None and attribute(node, "noop_with_empty_axes", 0):
            return x
        keep = bool(attribute(node, "keepdims", 1))
        return self._move(x, x.integers.max(axis=axes, keepdims=keep))

    def _gather(self, node: onnx.NodeProto, x: Any) -> Quantized:
        indices = self._constant(node.input[1])
        return self._move(x, np.take(x.integers, indices, axis=attribute(node, "axis", 0)))

    def _move(self, x: Quantized, integers: Array) -> Quantized:
        return replace(x, integers=integers)

    def _constant(self, name: str) -> Array:
        return self.constants[name] if name in self.constants else self.given(name)

    def _axes(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        """Return the axes of a node; None, as in numpy, for a node that names none and takes all."""
        if len(node.input) < 2 or not node.input[1]:
            named = attribute(node, "axes")  # opsets before 18, and before 13
            return None if named is None else tuple(named)
        return tuple(int(axis) for axis in np.atleast_1d(self._constant(node.input[1])))

    def _reshape(self, node: onnx.NodeProto, values: Array) -> Array:
        sizes = [int(size) for size in self._constant(node.input[1])]
        if not attribute(node, "allowzero", 0):
            sizes = [values.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
        return values.reshape(sizes)

    def _slice(self, node: onnx.NodeProto, values: Array) -> Array:
        starts, ends = (self._constant(name) for name in node.input[1:3])
        axes, steps = (
            self._constant(node.input[index]) if len(node.input) > index and node.input[index] else default
            for index, default in ((3, np.arange(len(starts))), (4, np.ones_like(starts)))
        )
        slices = [slice(None)] * values.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            slices[int(axis)] = slice(int(start), int(end), int(step))
        return values[tuple(slices)]


def _is_bytes(table: Array | None) -> bool:
    return table is not None and table.dtype in (np.uint8, np.int8)
