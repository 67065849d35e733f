"""Forms of operators in files of other tools, compared with onnxruntime to the byte."""

import numpy as np
import pytest
from onnx import helper

from qgait_ptq.verification.file_bytes import compare_with_reference
from qgait_ptq.verification.recording import record
from tests.verification.test_file_bytes import make_model, qdq

FAR = 2**62
CONSTANTS = {
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "two": np.array([2], np.int64),
    "last": np.array([-1], np.int64),
    "far": np.array([-FAR], np.int64),
    "weight": np.random.default_rng(0).integers(-60, 60, (5, 12)).astype(np.int8),
    "scales": np.full(5, 0.01, np.float32),
    "zeros": np.zeros(5, np.int8),
}
WEIGHT = helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w"], "w", axis=0)


def compare(node, shape, opset=21):
    """Compare ``x → Q → DQ → node → Q → DQ``; return the operators whose integers were compared."""
    constants = dict(CONSTANTS)
    nodes = [*qdq("a", "x", 0.05, 100, constants), WEIGHT, node, *qdq("out", "y", 0.05, 100, constants)]
    model = make_model(nodes, constants, {"x": shape}, "out")
    model.opset_import[0].version = opset
    feeds = [{"x": np.random.default_rng(1).uniform(-4, 6, shape).astype(np.float32)}]
    verification = compare_with_reference(model, feeds, record(model, feeds))
    assert verification.differing == 0
    assert verification.unknown == ()
    return [tensor.operator for tensor in verification.tensors]


@pytest.mark.parametrize(
    ("opset", "settings"),
    [
        (13, {"axes": [2], "keepdims": 1}),
        (17, {"axes": [1], "keepdims": 0}),
        (18, {"noop_with_empty_axes": 1}),
    ],
)
def test_axes_of_a_maximum_can_be_an_attribute_or_missing(opset, settings):
    node = helper.make_node("ReduceMax", ["a"], ["y"], "maximum", **settings)
    assert "ReduceMax" in compare(node, [1, 3, 6], opset)


@pytest.mark.parametrize(
    "inputs",
    [["zero", "one"], ["zero", "one", "", "one"], ["last", "far", "two", "last"], ["one", "two", "last"]],
)
def test_a_slice_needs_no_axes_and_no_steps(inputs):
    assert "Slice" in compare(helper.make_node("Slice", ["a", *inputs], ["y"], "slice"), [2, 3, 6])


@pytest.mark.parametrize(
    ("shape", "settings"), [([2, 12], {}), ([2, 12], {"alpha": 0.5}), ([12, 2], {"transA": 1})]
)
def test_a_product_can_have_a_factor_or_a_transposed_input(shape, settings):
    node = helper.make_node("Gemm", ["a", "w"], ["y"], "product", transB=1, **settings)
    assert "QGemm" in compare(node, shape)
