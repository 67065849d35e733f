"""A lookup table for a first layer with inputs of one bit: the output of every possible patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.exporters.passes.onnx_pass import OnnxPass
from qgait_ptq.onnx_graph.editing import make_node, replace_nodes
from qgait_ptq.onnx_graph.view import OnnxGraph, attribute
from qgait_ptq.reference.interpreter import simulate

LARGEST_KERNEL = 9  # values of a patch; a table of 512 rows fits into the fastest cache
TABLE = "/table"  # suffix of the node that reads the table


@dataclass(frozen=True)
class _Layer:
    """A convolution with all nodes between its input integers and its output integers.

    Attributes:
        nodes: nodes that compute it, including those of its weights.
        convolution: node of the convolution.
        read: name of the input integers, zeros and ones.
        given: name of the output integers.
        kernel: height and width of the kernel.
    """

    nodes: list[onnx.NodeProto]
    convolution: onnx.NodeProto
    read: str
    given: str
    kernel: tuple[int, ...]


def look_up_first_layer(model: onnx.ModelProto) -> None:
    """Replace convolutions of one channel of one bit by lookup tables, in place.

    The values of a patch are the bits of a number, which a convolution with powers of two computes. For each
    number, the table has the channels of the output, computed with the integer reference. The file gives the
    same bytes. onnxruntime convolves a single channel slowly, so a table is faster for up to
    `LARGEST_KERNEL` values.
    """
    graph = OnnxGraph(model)
    candidates = [_layer_of(node, graph) for node in graph.nodes_of("Conv")]
    layers = {layer.given: layer for layer in candidates if layer is not None}
    if not layers:
        return
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        layer = layers.get(node.output[0])
        nodes += [node] if layer is None else _look_up(layer)
    for layer in layers.values():
        model.graph.initializer.extend(_constants(layer, model))
    replace_nodes(model.graph, nodes)


FIRST_LAYER_TABLE = OnnxPass("first-layer-table", look_up_first_layer, layer_suffix=TABLE)


def layers_in_tables(graph: onnx.GraphProto) -> list[str]:
    """Return the layers that a file computes with a lookup table."""
    return [node.name.removesuffix(TABLE) for node in graph.node if node.name.endswith(TABLE)]


def _layer_of(convolution: onnx.NodeProto, graph: OnnxGraph) -> _Layer | None:
    """Return the layer of a convolution; None if it cannot be a table."""
    read = [node for name in convolution.input if (node := graph.producer(name)) is not None]
    if [node.op_type for node in read] != ["DequantizeLinear"] * len(convolution.input):
        return None
    features, weight = read[:2]
    casts = [cast for node in read[1:] if (cast := graph.producer(node.input[0])) is not None]
    stored = graph.constants[casts[0].input[0] if casts else weight.input[0]]
    is_small = stored.ndim == 4 and stored[0].size <= LARGEST_KERNEL and len(stored[0]) == 1
    behind = _nodes_behind(convolution, graph)
    is_ungrouped = attribute(convolution, "group", 1) == 1
    bits = _has_one_bit(features.input[0], graph) and _pads_with_zero(features, graph)
    if not (is_small and is_ungrouped and behind and bits):
        return None
    nodes = [*casts, *read, convolution, *behind]
    return _Layer(nodes, convolution, features.input[0], behind[-1].output[0], stored.shape[2:])


def _has_one_bit(name: str, graph: OnnxGraph) -> bool:
    """Return whether integers are zeros and ones, in a grid of one bit."""
    node = graph.producer(name)
    high = graph.constants.get(node.input[2]) if node is not None and node.op_type == "Clip" else None
    return high is not None and high.dtype == np.uint8 and bool(high == 1)


def _pads_with_zero(features: onnx.NodeProto, graph: OnnxGraph) -> bool:
    """Return whether the code of zero, with which a convolution pads, is 0, as the table assumes."""
    return len(features.input) < 3 or not np.any(graph.constants.get(features.input[2], 1))


def _nodes_behind(convolution: onnx.NodeProto, graph: OnnxGraph) -> list[onnx.NodeProto]:
    """Return the ReLU, the quantizer and the Clip after a convolution; nothing if it has other readers."""
    nodes = [convolution]
    for operator in ("Relu", "QuantizeLinear", "Clip"):
        following = graph.only_consumer(nodes[-1].output[0])
        if following is not None and following.op_type == operator:
            nodes.append(following)
        elif operator == "QuantizeLinear":
            return []
    return nodes[1:]


def _look_up(layer: _Layer) -> list[onnx.NodeProto]:
    """Return the nodes that replace a layer."""
    name, output = layer.convolution.name, layer.given
    shape = {key: attribute(layer.convolution, key) for key in ("pads", "strides", "dilations")}
    shape = {key: value for key, value in shape.items() if value is not None}
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", [layer.read], "bits", {"to": TensorProto.FLOAT}),
        ("Conv", [f"{output}.bits", f"{output}.powers"], "number", {"kernel_shape": layer.kernel, **shape}),
        ("Cast", [f"{output}.number"], "row", {"to": TensorProto.INT32}),
        ("Squeeze", [f"{output}.row", f"{output}.channel"], "rows", {}),
    ]
    nodes = [
        make_node(operator, inputs, f"{output}.{result}", **attributes)
        for operator, inputs, result, attributes in steps
    ]
    last = f"{output}.channels_last"
    nodes.append(helper.make_node("Gather", [f"{output}.table", f"{output}.rows"], [last], f"{name}{TABLE}"))
    nodes.append(make_node("Transpose", [last], output, perm=[0, 3, 1, 2]))
    return nodes


def _constants(layer: _Layer, model: onnx.ModelProto) -> list[onnx.TensorProto]:
    output, (height, width) = layer.given, layer.kernel
    powers = (2.0 ** np.arange(height * width)).astype(np.float32).reshape(1, 1, height, width)
    return [
        numpy_helper.from_array(powers, f"{output}.powers"),
        numpy_helper.from_array(np.array([1], np.int64), f"{output}.channel"),
        numpy_helper.from_array(_table(layer, model), f"{output}.table"),
    ]


def _table(layer: _Layer, model: onnx.ModelProto) -> NDArray[Any]:
    """Return the table ``[2^kernel, c]``. The bits of a row number are the patch of that row."""
    height, width = layer.kernel
    numbers = np.arange(2 ** (height * width))
    patches = (numbers[:, None] >> np.arange(height * width) & 1).astype(np.uint8)
    alone = onnx.ModelProto()
    alone.graph.initializer.extend(model.graph.initializer)
    alone.graph.node.extend(layer.nodes)
    for node in alone.graph.node:
        if node.name == layer.convolution.name:
            del node.attribute[:]  # a patch is a whole input: no padding and no strides
    inputs = {layer.read: patches.reshape(-1, 1, height, width)}
    table = simulate(alone, inputs.__getitem__)[layer.given]
    return np.ascontiguousarray(table.reshape(len(numbers), -1))
