"""The integer reference: against onnxruntime's kernels one by one, and against whole files."""

from functools import partial

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import qgait_ptq as qg
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.reference.interpreter import simulate
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import open_onnxruntime
from qgait_ptq.verification.file_bytes import compare_with_reference, name_inputs, random_batches, verify
from qgait_ptq.verification.recording import record
from tests.conftest import make_gaitbase, make_gaitset

FAST = {"idc": IdcConfig(enabled=False), "rounding": "nearest", "bias_correction": False}


def qdq(name, source, scale, zero_point, constants):
    constants |= {f"{name}.scale": np.float32(scale), f"{name}.zero": np.uint8(zero_point)}
    parameters = [f"{name}.scale", f"{name}.zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *parameters], [f"{name}.quantized"], name=f"{name}.Q"),
        helper.make_node("DequantizeLinear", [f"{name}.quantized", *parameters], [name], name=f"{name}.DQ"),
    ]


def make_model(nodes, constants, inputs, output):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model


scales = st.floats(0.01, 0.1)
zero_points = st.integers(0, 200)


@settings(max_examples=30)
@given(scales, scales, scales, zero_points, zero_points, zero_points, st.integers(0, 10**6))
def test_an_addition_is_that_of_onnxruntime_to_the_byte(left, right, out, zero_a, zero_b, zero_out, seed):
    constants = {}
    nodes = [
        *qdq("a", "x", left, zero_a, constants),
        *qdq("b", "y", right, zero_b, constants),
        helper.make_node("Add", ["a", "b"], ["sum"], name="add"),
        *qdq("out", "sum", out, zero_out, constants),
    ]
    model = make_model(nodes, constants, {"x": [4096], "y": [4096]}, "out")
    rng = np.random.default_rng(seed)
    feed = {name: rng.uniform(-20, 20, 4096).astype(np.float32) for name in ("x", "y")}
    expected = simulate(model, feed.__getitem__)["out.quantized"]
    (values,) = open_onnxruntime(model.SerializeToString(), threads=1).run(None, feed)
    found = np.rint(values / np.float32(out)).astype(int) + zero_out
    np.testing.assert_array_equal(found, expected)


def test_chosen_elements_are_those_of_onnxruntime():
    constants = {"indices": np.array([2, 0, 2], np.int64)}
    nodes = [
        *qdq("a", "x", 0.1, 100, constants),
        helper.make_node("Gather", ["a", "indices"], ["chosen"], name="chosen", axis=1),
        *qdq("out", "chosen", 0.1, 100, constants),
    ]
    model = make_model(nodes, constants, {"x": [2, 3]}, "out")
    feed = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    expected = simulate(model, feed.__getitem__)["out.quantized"]
    (values,) = open_onnxruntime(model.SerializeToString(), threads=1).run(None, feed)
    np.testing.assert_array_equal(np.rint(values / np.float32(0.1)).astype(int) + 100, expected)
    np.testing.assert_allclose(values, feed["x"][:, [2, 0, 2]], atol=1e-6)


@pytest.mark.parametrize(
    ("network", "bits"),
    [
        (make_gaitbase, (8, 8)),
        pytest.param(partial(make_gaitset, strips=(1, 2)), (4, 4), marks=pytest.mark.slow),
        pytest.param(make_gaitbase, (4, 4), marks=pytest.mark.slow),
        pytest.param(make_gaitset, (8, 8), marks=pytest.mark.slow),
    ],
)
def test_no_byte_of_a_file_differs(tmp_path, few_walkers, network, bits):
    config = qg.QuantConfig(weight_bits=bits[0], activation_bits=bits[1], minimum_agreement=-1, **FAST)
    path = qg.quantize(network(), few_walkers, config, device="cpu").save(tmp_path) / "model.onnx"
    batches = [[few_walkers[index][0][None]] for index in (0, 5)]
    verification = verify(path, batches)
    assert verification.differing == 0
    assert verification.unknown == ()
    assert len(verification.tensors) > 20
    assert {"QLinearConv", "ReduceMax"} <= {tensor.operator for tensor in verification.tensors}


def test_a_changed_weight_is_found_in_its_layer_and_behind_it_only(eight_bit_file, walkers):
    """The reference reads one file and the runtime another, whose second layer has one other weight."""
    model = onnx.load(eight_bit_file)
    producers = {name: node for node in model.graph.node for name in node.output}
    (layer,) = (node for node in model.graph.node if node.name == "blocks.1.conv1")
    stored = producers[layer.input[1]].input[0]
    weight = next(i for i in model.graph.initializer if i.name == stored)
    changed = numpy_helper.to_array(weight).copy()
    changed.flat[:] = np.clip(changed.flat[:].astype(int) + 9, -127, 127)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    original = onnx.load(eight_bit_file)
    feeds = [name_inputs(original, [walkers[0][0][None]])]
    recording = record(model, feeds)
    verification = compare_with_reference(original, feeds, recording)
    differing = [tensor.node for tensor in verification.tensors if tensor.differing]
    assert verification.differing > 0
    assert not any(node.startswith(("stem", "blocks.0")) for node in differing)


@pytest.mark.parametrize(("element", "dtype"), [("UINT8", np.uint8), ("FLOAT", np.float32)])
def test_random_batches_are_binary_and_of_the_files_own_type(element, dtype):
    model = make_model([helper.make_node("Identity", ["x"], ["y"])], {}, {"x": ["n", "s", 64, 44]}, "y")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = getattr(TensorProto, element)
    batches = random_batches(open_session(model.SerializeToString(), threads=1), 2, 5)
    assert [batch.shape for (batch,) in batches] == [(1, 5, 64, 44)] * 2
    assert {batch.dtype for (batch,) in batches} == {np.dtype(dtype)}
    assert all(set(np.unique(batch)) == {0, 255 if dtype is np.uint8 else 1} for (batch,) in batches)


@pytest.mark.parametrize("moved", ["Slice", "Transpose", "Reshape"])
def test_a_leaky_rectifier_may_be_followed_by_a_move(moved):
    constants = {
        "zero": np.array([1]),
        "end": np.array([3]),
        "axis": np.array([1]),
        "shape": np.array([12, 2]),
    }
    inputs = {"Slice": ["bent", "zero", "end", "axis"], "Transpose": ["bent"], "Reshape": ["bent", "shape"]}
    attributes = {"perm": [1, 0]} if moved == "Transpose" else {}
    nodes = [
        *qdq("a", "x", 0.05, 100, constants),
        helper.make_node("LeakyRelu", ["a"], ["bent"], name="bent", alpha=0.1),
        helper.make_node(moved, inputs[moved], ["moved"], name="moved", **attributes),
        *qdq("out", "moved", 0.04, 20, constants),
    ]
    model = make_model(nodes, constants, {"x": [6, 4]}, "out")
    feed = {"x": np.random.default_rng(0).uniform(-4, 4, (6, 4)).astype(np.float32)}
    expected = simulate(model, feed.__getitem__)["out.quantized"]
    (values,) = open_onnxruntime(model.SerializeToString(), threads=1, optimised=False).run(None, feed)
    np.testing.assert_array_equal(np.rint(values / np.float32(0.04)).astype(int) + 20, expected)


@pytest.mark.parametrize("axes", [None, [2]])
def test_a_squeeze_is_that_of_onnxruntime_with_and_without_axes(axes):
    constants = {} if axes is None else {"axes": np.int64(axes)}
    nodes = [
        helper.make_node("Squeeze", ["x", *constants], ["squeezed"], name="squeeze"),
        *qdq("out", "squeezed", 0.05, 100, constants),
    ]
    model = make_model(nodes, constants, {"x": [2, 5, 1]}, "out")
    feed = {"x": np.random.default_rng(0).uniform(-5, 5, (2, 5, 1)).astype(np.float32)}
    observed = record(model, [feed])
    assert not [
        tensor for tensor in compare_with_reference(model, [feed], observed).tensors if tensor.differing
    ]


def layer(name, source, out, channels, constants, rng):
    """A 1×1 convolution with bytes as input and output; one sum in 64 lies between two bytes."""
    constants |= {
        f"{name}.weight": rng.integers(-60, 60, (8, channels, 1, 1)).astype(np.int8),
        f"{name}.weight.scale": np.float32(0.1),
        f"{name}.weight.zero": np.int8(0),
    }
    weight = [f"{name}.weight", f"{name}.weight.scale", f"{name}.weight.zero"]
    return [
        helper.make_node("DequantizeLinear", weight, [f"{name}.float"], name=f"{name}.weight.DQ"),
        helper.make_node("Conv", [source, f"{name}.float"], [f"{name}.sum"], name=name),
        *qdq(out, f"{name}.sum", 0.64, 120, constants),
    ]


@pytest.mark.parametrize("bound", ["Relu", "Clip", None])
def test_layers_behind_floats_are_compared_with_the_floats_of_the_runtime(bound):
    rng, constants = np.random.default_rng(0), {}
    nodes = [
        *qdq("bytes", "x", 0.1, 128, constants),
        *layer("first", "bytes", "between", 4, constants, rng),
        helper.make_node("Mul", ["between", "factor"], ["scaled"], name="mul"),
    ]
    constants |= {"factor": rng.uniform(0.5, 2, (8, 1, 1)).astype(np.float32)}
    if bound is not None:
        limits = ["low", "high"] if bound == "Clip" else []
        constants |= dict(zip(limits, (np.float32(0), np.float32(60)), strict=False))
        nodes.append(helper.make_node(bound, ["scaled", *limits], ["bounded"], name="bound"))
    nodes += qdq("again", "scaled" if bound is None else "bounded", 0.31, 0, constants)
    nodes += layer("second", "again", "out", 8, constants, rng)
    model = make_model(nodes, constants, {"x": [1, 4, 40, 40]}, "out")
    feed = {"x": rng.uniform(-12, 12, (1, 4, 40, 40)).astype(np.float32)}
    verification = compare_with_reference(model, [feed], record(model, [feed]))
    assert {"first", "second"} <= {tensor.node for tensor in verification.tensors}
    assert verification.differing == 0
