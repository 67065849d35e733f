"""The shared view of an ONNX graph."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.onnx_graph.view import OnnxGraph, attribute


@pytest.fixture
def model():
    """A Cast of stored INT8 numbers, a Dropout without its second output, an addition of x to itself."""
    nodes = [
        helper.make_node("Cast", ["stored"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Dropout", ["x"], ["kept", ""]),
        helper.make_node("Add", ["kept", "kept"], ["twice"]),
        helper.make_node("Clip", ["twice", "", "one"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "cast"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(np.array([1, -2], np.int8), "stored"),
            numpy_helper.from_array(np.float32(1), "one"),
        ],
        value_info=[helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["n", 2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_producers_and_consumers_of_a_tensor(model):
    graph = OnnxGraph(model)
    assert graph.producer("twice").op_type == "Add"
    assert graph.producer("x") is None
    assert [node.op_type for node in graph.consumers("x")] == ["Dropout"]
    assert graph.only_consumer("twice").op_type == "Clip"
    assert len(graph.consumers("kept")) == 2  # the same node twice
    assert graph.only_consumer("kept") is None
    assert graph.consumers("absent") == []


def test_an_output_or_input_that_is_left_out_is_no_tensor(model):
    graph = OnnxGraph(model)
    assert graph.producer("") is None
    assert graph.consumers("") == []


def test_constants_are_arrays_and_may_stand_behind_a_cast(model):
    graph = OnnxGraph(model)
    np.testing.assert_array_equal(graph.constants["stored"], [1, -2])
    assert sorted(graph.constants) == ["one", "stored"]
    assert graph.constants.get("cast") is None
    assert graph.initializer("cast") is None
    assert graph.initializer("cast", through=("Cast",)).name == "stored"
    assert graph.initializer("twice", through=("Cast",)) is None


def test_interface_opset_and_ranks(model):
    graph = OnnxGraph(model)
    assert (list(graph.inputs), graph.outputs, graph.opset) == (["x"], ("y",), 21)
    assert (graph.rank("twice"), graph.rank("kept")) == (2, None)
    assert [node.op_type for node in graph.nodes_of("Add", "Clip")] == ["Add", "Clip"]


def test_attributes_are_python_objects_and_the_last_of_two_counts():
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], auto_pad="VALID")
    assert attribute(node, "kernel_shape") == [2, 2]
    assert attribute(node, "strides", [1, 1]) == [1, 1]
    node.attribute.append(helper.make_attribute("kernel_shape", [3, 3]))
    assert attribute(node, "kernel_shape") == [3, 3]


@pytest.mark.parametrize("damage", ["type", "size"])
def test_a_damaged_tensor_harms_only_those_who_read_it_and_is_not_taken_for_a_missing_one(model, damage):
    stored = model.graph.initializer[0]
    if damage == "type":
        stored.data_type = 77
    else:
        stored.dims[0] = 7
    graph = OnnxGraph(model)
    assert "stored" in graph.constants
    assert graph.constants["one"] == 1
    with pytest.raises(Exception, match=r".+"):  # of onnx and numpy, without a common base
        graph.constants.get("stored")


def test_graphs_are_read_and_edited_without_torch():
    modules = "qgait_ptq.onnx_graph.view, qgait_ptq.onnx_graph.editing"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
