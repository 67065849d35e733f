"""Edits of ONNX graphs."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.onnx_graph.editing import make_node, replace_nodes, replace_reads


def test_nodes_and_initializers_that_lead_nowhere_are_left_out():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.float32(1), name) for name in ("used", "unused")],
    )
    nodes = [
        make_node("Add", ["x", "used"], "sum"),
        make_node("Add", ["x", "unused"], "other"),
        make_node("Relu", ["sum"], "y"),
    ]
    replace_nodes(graph, nodes)
    assert [node.name for node in graph.node] == ["sum.Add", "y.Relu"]
    assert [value.name for value in graph.initializer] == ["used"]


def test_every_read_of_a_tensor_is_replaced():
    nodes = [make_node("Add", ["a", "a"], "b"), make_node("Relu", ["b"], "c")]
    replace_reads(nodes, "a", "z")
    assert [list(node.input) for node in nodes] == [["z", "z"], ["b"]]
