"""A first layer of inputs of one bit as a table: every patch that its kernel can see, and what it gives."""

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

LARGEST_KERNEL = 9  # values that a patch has: a table of 512 rows stays in the fastest cache
TABLE = "/table"  # behind the name of a layer: the node that looks up


@dataclass(frozen=True)
class _Layer:
    """A convolution, from the integers that it reads to those that it gives.

    Attributes:
        nodes: that compute it, the convolution and its weights among them.
        convolution: one of them.
        read: name of its input's integers, zeros and ones.
        given: name of its output's integers.
        kernel: height and width.
    """

    nodes: list[onnx.NodeProto]
    convolution: onnx.NodeProto
    read: str
    given: str
    kernel: tuple[int, ...]


def look_up_first_layer(model: onnx.ModelProto) -> None:
    """Replace convolutions of one channel of one bit by tables of what they give, in place.

    The patch at each place is a number, its values being the bits, which a convolution with powers of two
    gives; of each number the table has the channels of the output, from the integer reference. So the file
    gives the same bytes. onnxruntime convolves a single channel at a fraction of its speed; this is faster
    for up to `LARGEST_KERNEL` values.
    """
    graph = OnnxGraph(model)
    found = [_layer_of(node, graph) for node in graph.nodes_of("Conv")]
    layers = {layer.given: layer for layer in found if layer is not None}
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
    """The layers whose own output a file does not have, for it looks them up."""
    return [node.name.removesuffix(TABLE) for node in graph.node if node.name.endswith(TABLE)]


def _layer_of(convolution: onnx.NodeProto, graph: OnnxGraph) -> _Layer | None:
    """The layer of a convolution, if it can be a table."""
    read = [node for name in convolution.input if (node := graph.producer(name)) is not None]
    if [node.op_type for node in read] != ["DequantizeLinear"] * len(convolution.input):
        return None
    given, weight = read[:2]
    casts = [cast for node in read[1:] if (cast := graph.producer(node.input[0])) is not None]
    stored = graph.constants[casts[0].input[0] if casts else weight.input[0]]
    is_small = stored.ndim == 4 and stored[0].size <= LARGEST_KERNEL and len(stored[0]) == 1
    behind = _nodes_behind(convolution, graph)
    is_ungrouped = attribute(convolution, "group", 1) == 1
    if not (is_small and is_ungrouped and behind and _has_one_bit(given.input[0], graph)):
        return None
    nodes = [*casts, *read, convolution, *behind]
    return _Layer(nodes, convolution, given.input[0], behind[-1].output[0], stored.shape[2:])


def _has_one_bit(name: str, graph: OnnxGraph) -> bool:
    """Whether integers are zeros and ones; only unsigned grids with zero_point 0 have one bit."""
    node = graph.producer(name)
    high = graph.constants.get(node.input[2]) if node is not None and node.op_type == "Clip" else None
    return high is not None and high.dtype == np.uint8 and bool(high == 1)


def _nodes_behind(convolution: onnx.NodeProto, graph: OnnxGraph) -> list[onnx.NodeProto]:
    """The ReLU, the quantizer and the Clip behind a convolution; nothing if others read it, too."""
    found = [convolution]
    for wanted in ("Relu", "QuantizeLinear", "Clip"):
        following = graph.only_consumer(found[-1].output[0])
        if following is not None and following.op_type == wanted:
            found.append(following)
        elif wanted == "QuantizeLinear":
            return []
    return found[1:]


def _look_up(layer: _Layer) -> list[onnx.NodeProto]:
    """The nodes in place of a layer."""
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
        make_node(operator, given, f"{output}.{result}", **attributes)
        for operator, given, result, attributes in steps
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
    """Row → what the layer gives for a patch whose bits are the row's number: ``[2^kernel, c]``."""
    height, width = layer.kernel
    numbers = np.arange(2 ** (height * width))
    patches = (numbers[:, None] >> np.arange(height * width) & 1).astype(np.uint8)
    alone = onnx.ModelProto()
    alone.graph.initializer.extend(model.graph.initializer)
    alone.graph.node.extend(layer.nodes)
    for node in alone.graph.node:
        if node.name == layer.convolution.name:
            del node.attribute[:]  # one patch at a time: without padding and strides
    given = {layer.read: patches.reshape(-1, 1, height, width)}
    table = simulate(alone, given.__getitem__)[layer.given]
    return np.ascontiguousarray(table.reshape(len(numbers), -1))
