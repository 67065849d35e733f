"""Integer sums that leave a layer in float, spelled out for runtimes that do not see them in Q/DQ."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.exporters.nodes import replace_nodes

SUMS = "/sums"  # behind the name of a layer: the node that sums; the layer's own gives the values


def spell_out_sums(model: onnx.ModelProto) -> None:
    """Write convolutions with integer weights and float results as ConvInteger, in place.

    onnxruntime has an integer kernel for a convolution between DequantizeLinear and QuantizeLinear only. One
    that nothing quantizes, as of the layer that gives the embedding, it computes in float, from weights that
    it keeps four times as large, and twice. Its sums are the same integers here; they are scaled by
    ``s_x · s_w`` in float32.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    quantized = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    constants = {value.name: value for value in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        read = [producers.get(name) for name in node.input]
        is_integer = all(source is not None and source.op_type == "DequantizeLinear" for source in read)
        if node.op_type == "Conv" and is_integer and not _is_quantized(node.output[0], graph, quantized):
            nodes += _spell_out(node, read, constants, graph)  # type: ignore[arg-type]
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)


def _is_quantized(name: str, graph: onnx.GraphProto, quantized: set[str]) -> bool:
    """Whether a quantizer reads a tensor, or the ReLU behind it."""
    rectified = [n.output[0] for n in graph.node if n.op_type == "Relu" and n.input[0] == name]
    return any(tensor in quantized for tensor in (name, *rectified))


def _spell_out(
    node: onnx.NodeProto,
    read: list[onnx.NodeProto],
    constants: dict[str, onnx.TensorProto],
    graph: onnx.GraphProto,
) -> list[onnx.NodeProto]:
    given, weight = read[:2]
    input_scale, weight_scale = (numpy_helper.to_array(constants[one.input[1]]) for one in (given, weight))
    spatial = next(len(a.ints) for a in node.attribute if a.name == "kernel_shape")
    column = (1, -1, *[1] * spatial)
    sums, output = f"{node.output[0]}.sums", node.output[0]
    summing = helper.make_node(
        "ConvInteger", [given.input[0], weight.input[0], given.input[2]], [sums], name=f"{node.name}{SUMS}"
    )
    summing.attribute.extend(node.attribute)
    nodes = [summing]
    if len(read) > 2:
        bias = numpy_helper.to_array(constants[read[2].input[0]]).reshape(column)
        graph.initializer.append(numpy_helper.from_array(bias, f"{output}.bias"))
        nodes.append(
            helper.make_node("Add", [sums, f"{output}.bias"], [f"{sums}.biased"], name=f"{sums}.Add")
        )
        sums = f"{sums}.biased"
    scale = (input_scale * weight_scale).astype(np.float32).reshape(column)
    graph.initializer.append(numpy_helper.from_array(scale, f"{output}.scale"))
    values = f"{sums}.float"
    nodes.append(helper.make_node("Cast", [sums], [values], name=f"{values}.Cast", to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Mul", [values, f"{output}.scale"], [output], name=node.name))
    return nodes
