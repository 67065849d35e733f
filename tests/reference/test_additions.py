"""The proof of additions, read from files."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.reference.additions import prove_additions
from qgait_ptq.reference.proof import prove_exactness
from qgait_ptq.runtime.without_telemetry import onnxruntime

HALF, WHOLE = np.float32(0.5), np.float32(1)


def addition(left=HALF, right=WHOLE, output=WHOLE, *, relu=False, clip=None, quantized=True):
    """A graph that adds two inputs of bytes."""
    constants = {"left": left, "right": right, "output": output, "zero": np.uint8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "left", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["b", "right", "zero"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["sum"], name="addition"),
    ]
    last = "sum"
    if relu:
        nodes.append(helper.make_node("Relu", ["sum"], ["positive"]))
        last = "positive"
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", [last, "output", "zero"], ["codes"]))
        last = "codes"
    if clip is not None:
        constants["high"] = np.uint8(clip)
        nodes.append(helper.make_node("Clip", ["codes", "", "high"], ["clipped"]))
        last = "clipped"
    kind = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "addition",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, [256, 256]) for name in "ab"],
        [helper.make_tensor_value_info(last, kind, [256, 256])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


@pytest.mark.parametrize("relu", [False, True])
def test_middles_differ_and_are_named(relu):
    model = addition(relu=relu)
    (proof,) = prove_additions(model)
    assert (proof.node, proof.pairs) == ("addition", 2**16)
    assert 0 < proof.differing < proof.pairs
    whole = prove_exactness(model)
    assert not whole.exact
    assert "addition" in whole.verdict()
    assert whole.describe()["differing_additions"] == ["addition"]


def test_terms_that_are_moved_behind_their_dequantization_are_proven_too():
    model = addition()
    nodes = list(model.graph.node)
    moved = helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0])
    nodes[2].input[0] = "turned"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], moved, *nodes[2:]])
    (proof,) = prove_additions(model)
    assert proof.differing > 0


@pytest.mark.parametrize("relu", [False, True])
def test_a_sum_that_is_moved_before_its_quantization_is_proven_too(relu):
    model = addition(relu=relu)
    quantize = model.graph.node[-1]
    moved = helper.make_node("Transpose", [quantize.input[0]], ["turned"], perm=[1, 0])
    quantize.input[0] = "turned"
    nodes = [*model.graph.node[:-1], moved, quantize]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (proof,) = prove_additions(model)
    assert proof.differing > 0


def test_odd_denominators_are_proven():
    unit = np.float32(1 / 1023)
    model = addition(512 * unit, 700 * unit, 1023 * unit)
    (proof,) = prove_additions(model)
    assert proof.differing == 0
    assert prove_exactness(model).verdict() == "the same integers in layers and additions on every processor"


def test_a_clip_behind_narrows_what_can_differ():
    (narrow,), (wide,) = prove_additions(addition(clip=3)), prove_additions(addition())
    assert 0 < narrow.differing < wide.differing


def test_an_addition_that_gives_floats_is_none_of_integers():
    assert prove_additions(addition(quantized=False)) == ()


@pytest.mark.parametrize("scale", [np.float32(0), np.float32("nan"), np.ones(2, np.float32)])
def test_scales_that_make_no_sense_prove_nothing(scale):
    assert prove_additions(addition(left=scale)) == ()


def test_the_optimised_graph_has_the_same_proof(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(addition().SerializeToString(), options)
    (here,) = prove_additions(addition())
    (optimised,) = prove_additions(onnx.load(tmp_path / "optimised.onnx"))
    assert (optimised.pairs, optimised.differing) == (here.pairs, here.differing)
