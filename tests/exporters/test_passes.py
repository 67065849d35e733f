"""Exact rewrites for onnxruntime: the file computes the same integers in a faster way."""

import copy
import dataclasses
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import ConfigError
from qgait_ptq.exporters.onnx_file import export_marked, export_quantized, quantized_model
from qgait_ptq.exporters.passes.conv_integer import CONV_INTEGER
from qgait_ptq.exporters.passes.first_layer_table import FIRST_LAYER_TABLE, layers_in_tables
from qgait_ptq.exporters.passes.pooled_maxima import POOL_MAXIMA
from qgait_ptq.graph.operators import CONVOLUTIONS, is_operator
from qgait_ptq.placement.layers import list_layers
from qgait_ptq.placement.planning import plan
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import open_onnxruntime
from qgait_ptq.targets.registry import get_target
from qgait_ptq.targets.rules import find_broken_rules
from qgait_ptq.verification.file_bytes import verify
from qgait_ptq.verification.parity import layers_without_integer_kernel
from tests.conftest import make_gaitset
from tests.networks import quantize_again, quantize_network

ONNXRUNTIME = get_target("onnxruntime")


def make_model(nodes, constants, shape, rank):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model


def run(model, x):
    return open_onnxruntime(model.SerializeToString(), threads=1).run(None, {"x": x})


def quantized_maximum(axis, dtype):
    """``x → Q → DQ → ReduceMax``."""
    constants = {"scale": np.float32(0.5), "zero": dtype(3), "axes": np.array([axis], np.int64)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "d"),
        helper.make_node("ReduceMax", ["d", "axes"], ["y"], "maximum", keepdims=0),
    ]
    return make_model(nodes, constants, ["n", "s", "c", 5], 3)


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 40),
    st.sampled_from([1, 2, -3, -2]),
    st.sampled_from([np.uint8, np.int8]),
)
def test_maxima_by_pooling_are_maxima_at_every_length(sequences, frames, channels, axis, dtype):
    plain = quantized_maximum(axis, dtype)
    pooled = onnx.ModelProto()
    pooled.CopyFrom(plain)
    POOL_MAXIMA.run(pooled)
    assert any(node.op_type == "MaxPool" for node in pooled.graph.node)
    x = np.random.default_rng(frames).normal(0, 30, (sequences, frames, channels, 5)).astype(np.float32)
    np.testing.assert_array_equal(run(pooled, x)[0], run(plain, x)[0])


def test_a_maximum_without_axes_is_not_pooled():
    model = quantized_maximum(1, np.uint8)
    del model.graph.node[-1].input[1:]
    del model.graph.output[0].type.tensor_type.shape.dim[:]  # all axes are reduced
    POOL_MAXIMA.run(model)
    assert [node.op_type for node in model.graph.node][-1] == "ReduceMax"
    assert not any(node.op_type == "MaxPool" for node in model.graph.node)


def test_maxima_over_the_last_axis_and_of_floats_stay_as_they_are():
    last, floats = quantized_maximum(-1, np.uint8), quantized_maximum(1, np.uint8)
    floats.graph.node[2].input[0] = "x"
    for model in (last, floats):
        before = model.SerializeToString()
        POOL_MAXIMA.run(model)
        assert [n.op_type for n in model.graph.node if n.op_type == "MaxPool"] == []
        after = run(model, np.ones((1, 7, 3, 5), np.float32))
        np.testing.assert_array_equal(
            after, run(onnx.load_from_string(before), np.ones((1, 7, 3, 5), np.float32))
        )


def integer_convolution(rng, group, with_bias):
    """``x → Q → DQ → Conv`` with integer weight and bias, and a float result."""
    weight = rng.integers(-7, 8, (6, 4 // group, 3, 1))
    constants = {
        "scale": np.float32(0.11),
        "zero": np.uint8(7),
        "weight": weight.astype(np.int8),
        "weight_scale": rng.uniform(0.01, 0.2, 6).astype(np.float32),
        "weight_zero": np.zeros(6, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], "w", axis=0),
    ]
    read = ["d", "w"]
    if with_bias:
        constants |= {
            "bias": rng.integers(-5000, 5000, 6).astype(np.int32),
            "bias_scale": constants["scale"] * constants["weight_scale"],
            "bias_zero": np.zeros(6, np.int32),
        }
        nodes.append(
            helper.make_node("DequantizeLinear", ["bias", "bias_scale", "bias_zero"], ["b"], "b", axis=0)
        )
        read.append("b")
    attributes = {"group": group, "kernel_shape": [3, 1], "pads": [1, 0, 1, 0]}
    nodes.append(helper.make_node("Conv", read, ["y"], "layer", **attributes))
    return make_model(nodes, constants, ["n", 4, "h", "w"], 4), constants


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_sums_of_conv_integer_are_exact_and_scaled_once(group, with_bias):
    rng = np.random.default_rng(group)
    model, constants = integer_convolution(rng, group, with_bias)
    CONV_INTEGER.run(model)
    assert {n.op_type for n in model.graph.node} >= {"ConvInteger", "Mul"}
    assert not any(n.op_type in ("Conv", "DequantizeLinear") for n in model.graph.node)
    x = rng.normal(0, 9, (2, 4, 5, 3)).astype(np.float32)
    centred = np.clip(np.rint(x / constants["scale"]) + 7, 0, 255) - 7
    sums = torch.nn.functional.conv2d(
        torch.from_numpy(centred).double(),
        torch.from_numpy(constants["weight"]).double(),
        torch.from_numpy(constants.get("bias", np.zeros(6))).double(),
        padding=(1, 0),
        groups=group,
    )
    scale = (constants["scale"] * constants["weight_scale"]).reshape(1, -1, 1, 1)
    np.testing.assert_array_equal(run(model, x)[0], sums.numpy().astype(np.float32) * scale)


def test_a_convolution_that_is_quantized_again_stays_between_q_and_dq():
    model, _ = integer_convolution(np.random.default_rng(0), 1, True)
    model.graph.node.append(helper.make_node("Relu", ["y"], ["r"], "relu"))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["yq"], "yq"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["yq", "scale", "zero"], ["z"], "z"))
    model.graph.output[0].name = "z"
    before = [node.op_type for node in model.graph.node]
    CONV_INTEGER.run(model)
    assert [node.op_type for node in model.graph.node] == before


@pytest.fixture(scope="module", params=[pytest.param(8, marks=pytest.mark.slow), 4], ids="W{0}A{0}".format)
def gaitset(request, batches):
    bits = request.param
    quantized = quantize_network(
        make_gaitset(strips=(1, 2)), batches[:4], weight_bits=bits, activation_bits=bits, edge_bits=bits
    )
    return quantized, export_quantized(quantized.graph, quantized.captured, ONNXRUNTIME)


def test_the_layer_that_gives_the_embedding_sums_integers(gaitset):
    quantized, model = gaitset
    layers = list_layers(quantized.float_graph)
    assert all(layer.integer for layer in layers)
    assert layers_without_integer_kernel(model.SerializeToString(), [layer.name for layer in layers]) == []


def test_conv_integer_is_for_onnxruntime_only(gaitset):
    for name in ("openvino", "generic-qdq"):
        found = {broken.rule for broken in find_broken_rules(gaitset[1], get_target(name))}
        assert "integers stand between Q and DQ" in found


class Stem(nn.Module):
    """A first convolution of one channel, then as little as makes a network."""

    def __init__(self, kernel, rectified=True, **arguments):
        super().__init__()
        self.first = nn.Conv2d(1, 6, kernel, **arguments)
        self.activation = nn.ReLU() if rectified else nn.Identity()
        self.second = nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, silhouettes):
        n, s = silhouettes.shape[:2]
        x = self.activation(self.first(silhouettes.flatten(0, 1).unsqueeze(1)))
        return self.second(x).mean((2, 3)).unflatten(0, (n, s)).amax(1)


STEMS = {
    "3×3": Stem(3, padding=1),
    "strides": Stem((3, 2), stride=(2, 1), padding=(0, 1)),
    "dilated, no ReLU": Stem(3, rectified=False, dilation=2, padding=2, bias=False),
    "5×5": Stem(5, padding=2, stride=2),
}


@pytest.fixture(scope="module")
def grey(batches):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 9, *batches[0].shape[2:]), dtype=np.uint8)


@pytest.fixture(scope="module")
def quantize_stem(batches):
    """Quantize a stem; each is captured once."""
    planned = cache(lambda stem: quantize_network(STEMS[stem], batches[:2]))
    return lambda stem, **settings: quantize_again(planned(stem), batches[:4], **settings)


@pytest.mark.parametrize(
    ("stem", "bits"),
    [
        ("3×3", 8),
        ("3×3", 4),
        ("strides", 8),
        pytest.param("strides", 4, marks=pytest.mark.slow),
        pytest.param("dilated, no ReLU", 8, marks=pytest.mark.slow),
        ("dilated, no ReLU", 4),
    ],
)
def test_a_first_layer_in_a_table_gives_the_same_bytes(quantize_stem, grey, tmp_path, stem, bits):
    quantized = quantize_stem(stem, weight_bits=bits, activation_bits=bits, edge_bits=bits, input_bits=1)
    marked = export_marked(quantized.graph, quantized.captured, ONNXRUNTIME.opset)
    model = quantized_model(marked, quantized.graph, ONNXRUNTIME, byte_input=True)
    passes = tuple(name for name in ONNXRUNTIME.onnx_passes if name != FIRST_LAYER_TABLE.name)
    without_table = dataclasses.replace(ONNXRUNTIME, onnx_passes=passes)
    plain = quantized_model(marked, quantized.graph, without_table, byte_input=True)
    assert layers_in_tables(model.graph) == ["first"]
    assert layers_in_tables(plain.graph) == []
    looked_up, computed = (open_session(m.SerializeToString(), threads=1).infer(grey) for m in (model, plain))
    np.testing.assert_array_equal(looked_up, computed)
    assert layers_without_integer_kernel(model.SerializeToString(), ["first", "second"]) == []
    onnx.save(model, tmp_path / "model.onnx")
    verification = verify(tmp_path / "model.onnx", [[grey[:1]]])
    assert (verification.differing, verification.unknown) == (0, ())


def test_a_map_whose_zero_has_another_code_is_no_table(quantize_stem):
    """A convolution pads with the code of zero. The table pads with bits of 0."""
    quantized = quantize_stem("3×3", input_bits=1)
    graph = copy.deepcopy(quantized.graph)
    first = next(node for node in graph.graph.nodes if is_operator(node, CONVOLUTIONS))
    quantizer = graph.get_submodule(str(first.args[0].target))
    quantizer.zero_point.fill_(1)
    model = export_quantized(graph, quantized.captured, ONNXRUNTIME)
    assert layers_in_tables(model.graph) == []


def test_one_bit_splits_silhouettes_at_half(quantize_stem, grey):
    quantized = quantize_stem("3×3", input_bits=1)
    model = export_quantized(quantized.graph, quantized.captured, ONNXRUNTIME, byte_input=True)
    session = open_session(model.SerializeToString(), threads=1)
    split = np.where(grey >= 128, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(session.infer(grey), session.infer(split))
    assert not np.array_equal(session.infer(grey), session.infer(255 - split))


@pytest.mark.parametrize(
    ("stem", "settings"),
    [("5×5", {"input_bits": 1}), ("3×3", {}), ("3×3", {"input_bits": 2})],
    ids=["5×5", "8 bits", "2 bits"],
)
def test_what_is_no_small_layer_of_one_bit_is_computed(quantize_stem, stem, settings):
    quantized = quantize_stem(stem, **settings)
    model = export_quantized(quantized.graph, quantized.captured, ONNXRUNTIME, byte_input=True)
    assert layers_in_tables(model.graph) == []
    assert (
        layers_without_integer_kernel(
            model.SerializeToString(), [layer.name for layer in list_layers(quantized.float_graph)]
        )
        == []
    )


@pytest.mark.parametrize("target", ["tensorrt", "litert-int8"])
def test_one_bit_of_input_is_refused_where_activations_have_eight(target):
    with pytest.raises(ConfigError, match="input_bits is 1"):
        plan(STEMS["3×3"], (64, 44), QuantConfig(target=target, input_bits=1))
