"""ConvInteger for layers with float results, for runtimes that have no Q/DQ kernel for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.exporters.passes.onnx_pass import OnnxPass
from qgait_ptq.onnx_graph.editing import make_node, replace_nodes
from qgait_ptq.onnx_graph.view import OnnxGraph, attribute

SUMS = "/sums"  # suffix of the node that sums; the node with the layer's name gives the values


def write_conv_integer(model: onnx.ModelProto) -> None:
    """Write convolutions with integer weights and float results as ConvInteger, in place.

    onnxruntime has an integer kernel only for a convolution between DequantizeLinear and QuantizeLinear. If
    the result is not quantized, as for the embedding, it computes in float and keeps two copies of the
    weights, each four times as large. ConvInteger computes the same integer sums, which are scaled by
    ``s_x · s_w`` in float32.
    """
    graph = OnnxGraph(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        read = _dequantizers(node, graph) if node.op_type == "Conv" else None
        if read is None or _is_quantized(node.output[0], graph):
            nodes.append(node)
            continue
        rewritten, constants = _integer_sums(node, read, graph)
        nodes += rewritten
        model.graph.initializer.extend(constants)
    replace_nodes(model.graph, nodes)


CONV_INTEGER = OnnxPass("conv-integer", write_conv_integer, layer_suffix=SUMS)


def _dequantizers(node: onnx.NodeProto, graph: OnnxGraph) -> list[onnx.NodeProto] | None:
    """Return the DequantizeLinear before each input; None if an input has another producer or none."""
    producers = [graph.producer(name) for name in node.input]
    read = [
        producer for producer in producers if producer is not None and producer.op_type == "DequantizeLinear"
    ]
    return read if len(read) == len(producers) else None


def _is_quantized(name: str, graph: OnnxGraph) -> bool:
    """Return whether a quantizer reads a tensor, or reads it through a ReLU."""
    readers = graph.consumers(name)
    behind = [reader.output[0] for reader in readers if reader.op_type == "Relu"]
    readers += [reader for tensor in behind for reader in graph.consumers(tensor)]
    return any(reader.op_type == "QuantizeLinear" for reader in readers)


def _integer_sums(
    node: onnx.NodeProto, read: Sequence[onnx.NodeProto], graph: OnnxGraph
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes that replace a convolution, and their constants."""
    features, weight = read[:2]
    input_scale, weight_scale = (graph.constants[one.input[1]] for one in (features, weight))
    column = (1, -1, *[1] * len(attribute(node, "kernel_shape")))  # one value for each channel of the sums
    output, sums = node.output[0], f"{node.output[0]}.sums"
    summing = helper.make_node(
        "ConvInteger",
        [features.input[0], weight.input[0], features.input[2]],
        [sums],
        name=f"{node.name}{SUMS}",
    )
    summing.attribute.extend(node.attribute)
    nodes, constants = [summing], []
    if len(read) > 2:
        bias = graph.constants[read[2].input[0]].reshape(column)
        constants.append(numpy_helper.from_array(bias, f"{output}.bias"))
        add = helper.make_node("Add", [sums, f"{output}.bias"], [f"{sums}.biased"], name=f"{sums}.Add")
        nodes.append(add)
        sums = f"{sums}.biased"
    scale = (input_scale * weight_scale).astype(np.float32).reshape(column)
    constants.append(numpy_helper.from_array(scale, f"{output}.scale"))
    values = f"{sums}.float"
    nodes.append(make_node("Cast", [sums], values, to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Mul", [values, f"{output}.scale"], [output], name=node.name))
    return nodes, constants
