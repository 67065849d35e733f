"""A first layer of inputs of one bit as a table: every patch that its kernel can see, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.exporters.nodes import replace_nodes
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
    around = _Surroundings(model.graph)
    found = [around.layer_of(node) for node in model.graph.node if node.op_type == "Conv"]
    layers = {layer.given: layer for layer in found if layer is not None}
    if not layers:
        return
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        layer = layers.get(node.output[0])
        nodes += [node] if layer is None else _look_up(layer)
    for layer in layers.values():
        model.graph.initializer.extend(_constants(layer, model))
    replace_nodes(model.graph, nodes)


def layers_in_tables(graph: onnx.GraphProto) -> list[str]:
    """The layers whose own output a file does not have, for it looks them up."""
    return [node.name.removesuffix(TABLE) for node in graph.node if node.name.endswith(TABLE)]


class _Surroundings:
    """What stands around a node of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def layer_of(self, convolution: onnx.NodeProto) -> _Layer | None:
        """The layer of a convolution, if it can be a table."""
        read = [self.producers[name] for name in convolution.input if name in self.producers]
        if [node.op_type for node in read] != ["DequantizeLinear"] * len(convolution.input):
            return None
        given, weight = read[:2]
        casts = [self.producers[node.input[0]] for node in read[1:] if node.input[0] in self.producers]
        stored = self.constants[casts[0].input[0] if casts else weight.input[0]]
        is_small = stored.ndim == 4 and stored[0].size <= LARGEST_KERNEL and len(stored[0]) == 1
        behind = self._behind(convolution)
        is_ungrouped = _attributes(convolution).get("group", 1) == 1
        if not (is_small and is_ungrouped and behind and self._has_one_bit(given.input[0])):
            return None
        nodes = [*casts, *read, convolution, *behind]
        return _Layer(nodes, convolution, given.input[0], behind[-1].output[0], stored.shape[2:])

    def _has_one_bit(self, name: str) -> bool:
        """Whether integers are zeros and ones; only unsigned grids with zero_point 0 have one bit."""
        node = self.producers.get(name)
        high = self.constants.get(node.input[2]) if node is not None and node.op_type == "Clip" else None
        return high is not None and high.dtype == np.uint8 and bool(high == 1)

    def _behind(self, convolution: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The ReLU, the quantizer and the Clip behind a convolution; nothing if others read it, too."""
        found = [convolution]
        for wanted in ("Relu", "QuantizeLinear", "Clip"):
            following = self.readers.get(found[-1].output[0], [])
            if [node.op_type for node in following] == [wanted]:
                found += following
            elif wanted == "QuantizeLinear":
                return []
        return found[1:]


def _look_up(layer: _Layer) -> list[onnx.NodeProto]:
    """The nodes in place of a layer."""
    name, output = layer.convolution.name, layer.given
    shape = {key: _attributes(layer.convolution).get(key) for key in ("pads", "strides", "dilations")}
    shape = {key: value for key, value in shape.items() if value is not None}
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", [layer.read], "bits", {"to": TensorProto.FLOAT}),
        ("Conv", [f"{output}.bits", f"{output}.powers"], "number", {"kernel_shape": layer.kernel, **shape}),
        ("Cast", [f"{output}.number"], "row", {"to": TensorProto.INT32}),
        ("Squeeze", [f"{output}.row", f"{output}.channel"], "rows", {}),
    ]
    nodes = [
        helper.make_node(
            operator, given, [f"{output}.{result}"], f"{output}.{result}.{operator}", **attributes
        )
        for operator, given, result, attributes in steps
    ]
    last = f"{output}.channels_last"
    nodes.append(helper.make_node("Gather", [f"{output}.table", f"{output}.rows"], [last], f"{name}{TABLE}"))
    nodes.append(helper.make_node("Transpose", [last], [output], f"{output}.Transpose", perm=[0, 3, 1, 2]))
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


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
