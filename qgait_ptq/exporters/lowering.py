"""Lowering: replace the markers in an ONNX graph by QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from qgait_ptq.errors import ExportError
from qgait_ptq.exporters.markers import DOMAIN, NAME, MarkedKind, Marker
from qgait_ptq.onnx_graph.editing import make_node
from qgait_ptq.quantizer.grid import IntegerGrid, along_channels, quantize, quantize_bias
from qgait_ptq.system.invariants import present
from qgait_ptq.targets.target import Storage

CALL_MARK = "#"  # separates a module path from the number of its call
INT4_BITS = 4  # weights of up to this width are stored as two per byte


def lower_markers(model: onnx.ModelProto, markers: list[Marker], storage: Storage) -> onnx.ModelProto:
    """Replace the markers of a model in place.

    Activations become Q → DQ, with a Clip between them below 8 bits. Weights become integer initializers
    with a DQ. Up to 4 bits they are stored as INT4 and cast to INT8; the runtime folds the cast on loading.
    For layers that compute in float, a Mul replaces the DQ and is folded as well. Biases become int32
    initializers. If the target's storage has no INT4, weights are INT8. If it has no int32, biases are
    float32 with the same values.

    Raises:
        ExportError: a marked weight or bias is not an initializer.
    """
    lowering = _Lowering(model, markers, storage)
    for node in list(model.graph.node):
        if _is_marker(node):
            lowering.lower(node)
        else:
            lowering.keep(node)
    del model.graph.node[:]
    model.graph.node.extend(lowering.nodes)
    _keep_used_initializers(model, lowering.initializers)
    _drop_domain(model)
    return model


def drop_markers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the markers of a model in place: what read a marker reads the marked tensor."""
    sources: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    outputs = {value.name for value in model.graph.output}
    for node in list(model.graph.node):
        node.input[:] = [sources.get(name, name) for name in node.input]
        if not _is_marker(node):
            kept.append(node)
        elif node.output[0] in outputs:
            kept.append(make_node("Identity", [node.input[0]], node.output[0]))
        else:
            sources[node.output[0]] = node.input[0]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _keep_used_initializers(model, {})
    _drop_domain(model)
    return model


def _is_marker(node: onnx.NodeProto) -> bool:
    return node.domain == DOMAIN and node.op_type == NAME


@dataclass
class _Lowering:
    model: onnx.ModelProto
    markers: list[Marker]
    storage: Storage
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.floats = {i.name: i for i in self.model.graph.initializer}
        self.layers: dict[str, str] = {}  # marked weight → module path
        self.calls = Counter[str]()  # calls of each layer so far
        self.stored: dict[tuple[str, tuple[int, ...], bytes], str] = {}  # content → initializer

    def keep(self, node: onnx.NodeProto) -> None:
        """Keep a node, and name layers with a marked weight by their module path.

        Layers that share a weight have the same path; the second call is named ``path#1``.
        """
        layer = next((self.layers[name] for name in node.input if name in self.layers), None)
        if layer is not None:
            calls = self.calls[layer]
            self.calls[layer] += 1
            node.name = f"{layer}{CALL_MARK}{calls}" if calls else layer
        self.nodes.append(node)

    def lower(self, node: onnx.NodeProto) -> None:
        marker = self.markers[node.attribute[0].i]
        source, output = node.input[0], node.output[0]
        if marker.kind is MarkedKind.ACTIVATION:
            self._activation(marker, source, output)
            return
        if source not in self.floats:
            raise ExportError(
                f"{marker.name}: its parameter is not stored in the ONNX graph; please report this network"
            )
        value = torch.from_numpy(numpy_helper.to_array(self.floats[source]).copy())
        if marker.kind is MarkedKind.BIAS:
            self._bias(marker, value, output)
        else:
            self._weight(marker, value, output)

    def _activation(self, marker: Marker, source: str, output: str) -> None:
        grid = _grid(marker)
        dtype: type = np.int8 if grid.signed else np.uint8
        scale = self._constant(f"{marker.name}.scale", marker.scale.cpu().numpy())
        zero_point = self._constant(
            f"{marker.name}.zero_point", marker.zero_point.cpu().numpy().astype(dtype)
        )
        integers = f"{output}.quantized"
        self._node("QuantizeLinear", [source, scale, zero_point], integers)
        if grid.bits < 8:
            low = self._constant(f"{marker.name}.quant_min", np.array(grid.quant_min, dtype))
            high = self._constant(f"{marker.name}.quant_max", np.array(grid.quant_max, dtype))
            self._node("Clip", [integers, low if grid.signed else "", high], f"{output}.clipped")
            integers = f"{output}.clipped"
        self._node("DequantizeLinear", [integers, scale, zero_point], output)

    def _weight(self, marker: Marker, value: torch.Tensor, output: str) -> None:
        grid = _grid(marker)
        if marker.layer:
            self.layers[output] = marker.layer
        integers = quantize(value, marker.scale.cpu(), marker.zero_point.cpu(), grid, marker.axis).numpy()
        as_int4 = grid.bits <= INT4_BITS and self.storage.int4_weights
        stored = self._constant(
            f"{marker.name}.quantized", integers.astype(ml_dtypes.int4 if as_int4 else np.int8)
        )
        scale = marker.scale.cpu().numpy()
        if marker.kind in (MarkedKind.FLOAT_WEIGHT, MarkedKind.WEIGHT_ONLY):
            column = along_channels(marker.scale.cpu(), marker.axis, integers.ndim).numpy()
            if marker.kind is MarkedKind.WEIGHT_ONLY:
                # OpenVINO takes an int8 or int4 constant with Cast and Mul for a DequantizeLinear. It would
                # compute the operator on integers, which saturate on some processors, or wrongly.
                self._node("Cast", [stored], f"{output}.int32", to=TensorProto.INT32)
                stored = f"{output}.int32"
            self._node("Cast", [stored], f"{output}.cast", to=TensorProto.FLOAT)
            self._node("Mul", [f"{output}.cast", self._constant(f"{marker.name}.scale", column)], output)
            return
        if as_int4:
            self._node("Cast", [stored], f"{output}.int8", to=TensorProto.INT8)
            stored = f"{output}.int8"
        # Each weight has its own zero-point, because onnxruntime's x64quantprecision rewrites it.
        zeros = f"{output}.zero_point"
        self.initializers[zeros] = numpy_helper.from_array(np.zeros(scale.shape, np.int8), zeros)
        scales = self._constant(f"{marker.name}.scale", scale)
        self._node("DequantizeLinear", [stored, scales, zeros], output, axis=marker.axis)

    def _bias(self, marker: Marker, value: torch.Tensor, output: str) -> None:
        integers = quantize_bias(value, marker.scale.cpu()).to(torch.int32).numpy()
        if not self.storage.integer_biases:
            values = (integers * marker.scale.cpu().double().numpy()).astype(np.float32)
            self.initializers[output] = numpy_helper.from_array(values, output)
            return
        stored = self._constant(f"{marker.name}.quantized", integers)
        scale = self._constant(f"{marker.name}.scale", marker.scale.cpu().numpy())
        zeros = self._constant(f"{marker.name}.zero_point", np.zeros(integers.shape, np.int32))
        self._node("DequantizeLinear", [stored, scale, zeros], output, axis=0)

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Return the name of an initializer with this value; equal values share one initializer."""
        content = (str(value.dtype), value.shape, value.tobytes())
        if content not in self.stored:
            self.stored[content] = name
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return self.stored[content]

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(make_node(operator, inputs, output, **attributes))


def _grid(marker: Marker) -> IntegerGrid:
    return present(marker.grid)  # only markers of biases have no grid


def _keep_used_initializers(model: onnx.ModelProto, new: dict[str, onnx.TensorProto]) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [i for i in model.graph.initializer if i.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *new.values()])
    values = [v for v in model.graph.value_info if v.name in used]
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)


def _drop_domain(model: onnx.ModelProto) -> None:
    opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
