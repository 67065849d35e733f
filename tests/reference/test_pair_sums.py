"""The proof of pair sums, on graphs written by hand: also of kinds that the toolkit does not write."""

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.reference.interpreter import simulate
from qgait_ptq.reference.pair_sums import bound_pair_sums
from qgait_ptq.reference.saturating_sums import saturation_loss
from qgait_ptq.runtime.sessions import open_unguarded
from qgait_ptq.runtime.unsigned_weights import with_unsigned_weights

ROWS = {  # operator → attributes, shape of the weight
    "Conv": ({}, (4, 6, 3, 3)),
    "Conv, one channel": ({}, (4, 1, 3, 3)),
    "Conv, grouped": ({"group": 2}, (4, 3, 3, 3)),
    "Conv, three axes": ({}, (4, 2, 3, 1, 1)),
}


def graph_of(nodes, constants, shape, dtype=TensorProto.UINT8, result=TensorProto.UINT8):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", result, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model


def between_quantizers(operator, weight, *, high=None, signed=False, axis=0, **attributes):
    """x → DQ (→ Clip) → operator with a dequantized weight → Q."""
    dtype = np.int8 if signed else np.uint8
    constants = {
        "scale": np.float32(1),
        "zero": dtype(0),
        "w": weight,
        "ws": np.full(weight.shape[axis], 1e-3, np.float32),
        "wz": np.zeros(weight.shape[axis], np.int8),
        "middle": np.uint8(128),
    }
    codes, nodes = "x", []
    if high is not None:
        constants["high"] = dtype(high)
        nodes.append(helper.make_node("Clip", ["x", "", "high"], ["codes"]))
        codes = "codes"
    channels = weight.shape[1] * attributes.get("group", 1)
    shape = [2, channels, *[5] * (weight.ndim - 2)] if operator == "Conv" else [2, weight.shape[axis - 1]]
    nodes += [
        helper.make_node("DequantizeLinear", [codes, "scale", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["kernel"], axis=axis),
        helper.make_node(operator, ["values", "kernel"], ["sums"], name="layer", **attributes),
        helper.make_node("QuantizeLinear", ["sums", "scale", "middle"], ["y"]),
    ]
    return graph_of(nodes, constants, shape, TensorProto.INT8 if signed else TensorProto.UINT8)


def random_weight(shape, seed=0):
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


def only(model):
    (layer,) = bound_pair_sums(model).layers
    return layer


def test_a_pair_at_the_limit_is_safe_and_one_beyond_is_not():
    weight = np.zeros((2, 4, 1, 1), np.int8)
    weight[1, 2:, 0, 0] = 64, 64
    assert only(between_quantizers("Conv", weight)).bound == 128 * 255
    assert only(between_quantizers("Conv", weight)).safe
    weight[1, 2, 0, 0] = 65
    found = bound_pair_sums(between_quantizers("Conv", weight))
    assert found.layers[0].worst_pair == 129
    assert not found.safe
    assert found.verdict() == "16-bit sums can saturate on x86 processors without VNNI: layer"


def test_neighbours_of_opposite_sign_and_those_that_are_none_do_not_count():
    weight = np.zeros((1, 4, 1, 1), np.int8)
    weight[0, :, 0, 0] = 127, -127, 1, 127  # pairs (127, −127) and (1, 127); 127 and 127 are no neighbours
    assert only(between_quantizers("Conv", weight)).worst_pair == 128


@pytest.mark.parametrize(("high", "safe"), [(15, True), (127, True), (129, True), (130, False)])
def test_the_largest_code_is_read_from_the_clip_in_front(high, safe):
    layer = only(between_quantizers("Conv", np.full((1, 2, 1, 1), 127, np.int8), high=high))
    assert (layer.largest_code, layer.safe) == (high, safe)


def test_signed_codes_are_counted_as_runtimes_move_them():
    assert (
        only(between_quantizers("Conv", np.full((1, 2, 1, 1), 64, np.int8), signed=True)).largest_code == 255
    )
    clipped = between_quantizers("Conv", np.full((1, 2, 1, 1), 64, np.int8), signed=True, high=7)
    assert only(clipped).largest_code == 135


@pytest.mark.parametrize("transposed", [0, 1])
def test_pairs_of_a_fully_connected_layer_run_along_its_inputs(transposed):
    weight = np.array([[100, 100, 1, 1], [1, 1, 1, 1]], np.int8)  # [o, i]
    stored = weight if transposed else weight.T.copy()
    model = between_quantizers("Gemm", stored, axis=1 - transposed, transB=transposed)
    assert only(model).worst_pair == 200


def test_depthwise_layers_are_safe():
    layer = only(between_quantizers("Conv", np.full((4, 1, 3, 3), 127, np.int8), group=4))
    assert layer.depthwise
    assert layer.safe


def test_operators_on_integers_are_read_too():
    weight = np.full((4, 3), 100, np.int8)  # [k, n]
    product = graph_of(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="m")], {"w": weight}, [2, 4]
    )
    assert (only(product).worst_pair, only(product).safe) == (200, False)
    unsigned = graph_of(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])], {"w": weight.astype(np.uint8)}, [2, 4]
    )
    assert bound_pair_sums(unsigned).safe


def moved(weight, *between, stored=False):
    """x → DQ → nodes that move values → Gemm with a dequantized weight, which may be moved, too → Q."""
    constants = {
        "scale": np.float32(1),
        "zero": np.uint8(0),
        "w": weight,
        "wz": np.int8(0),
        "shape": np.array([2, 8], np.int64),
    }
    names = ["values", *(f"moved{number}" for number in range(len(between)))]
    steps = zip(between, names, names[1:], strict=False)
    kernel = "turned" if stored else "kernel"
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["values"]),
        *(
            helper.make_node(operator, [before, *(["shape"] if operator == "Reshape" else [])], [after])
            for operator, before, after in steps
        ),
        helper.make_node("DequantizeLinear", ["w", "scale", "wz"], ["kernel"]),
        helper.make_node("Transpose", ["kernel"], ["turned"], perm=[1, 0]),
        helper.make_node("Gemm", [names[-1], kernel], ["sums"], name="layer"),
        helper.make_node("QuantizeLinear", ["sums", "scale", "zero"], ["y"]),
    ]
    return graph_of(nodes, constants, [2, 2, 4])


@pytest.mark.parametrize("between", [["Reshape"], ["Flatten"], ["Identity", "Reshape", "Identity"]])
def test_a_layer_behind_nodes_that_move_values_is_bounded(between):
    """Runtimes exchange them with the DequantizeLinear, and compute the layer on integers."""
    layer = only(moved(np.full((8, 8), 127, np.int8), *between))
    assert (layer.worst_pair, layer.safe) == (254, False)
    assert only(moved(np.full((8, 8), 64, np.int8), *between)).safe


def test_a_weight_that_is_moved_behind_its_dequantization_is_not_proven():
    found = bound_pair_sums(moved(np.full((8, 8), 127, np.int8), "Reshape", stored=True))
    assert found.unknown == ("layer",)
    assert not found.safe


def test_a_weight_that_is_computed_is_not_proven():
    nodes = [
        helper.make_node("Neg", ["stored"], ["w"]),
        helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="computed"),
    ]
    found = bound_pair_sums(graph_of(nodes, {"stored": np.ones((4, 3), np.int8)}, [2, 4]))
    assert found.unknown == ("computed",)
    assert not found.safe
    assert found.verdict() == "not proven: computed"


def loss_by_definition(codes, weight, groups):
    """Pair after pair of every patch, in kernel order (y, x, channel); no padding, steps of one."""
    outputs, channels, height, width = weight.shape
    rows, columns = codes.shape[2] - height + 1, codes.shape[3] - width + 1
    lost = np.zeros((len(codes), outputs, rows, columns), int)
    for n, o, y, x in np.ndindex(lost.shape):
        base = o // (outputs // groups) * channels
        patch = codes[n, base : base + channels, y : y + height, x : x + width].astype(int)
        products = [
            patch[c, i, j] * int(weight[o, c, i, j])
            for i, j, c in itertools.product(range(height), range(width), range(channels))
        ]
        for first in range(0, len(products), 2):
            total = sum(products[first : first + 2])
            lost[n, o, y, x] += max(-32768, min(32767, total)) - total
    return lost


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_saturating_sums_are_those_of_the_instruction(channels, groups):
    rng = np.random.default_rng(0)
    codes = np.where(rng.random((2, channels, 5, 6)) < 0.6, 255, rng.integers(0, 256, (2, channels, 5, 6)))
    weight = random_weight((4, channels // groups, 3, 3))
    found = saturation_loss(codes.astype(np.uint8), weight, (1, 1), (1, 1), groups)
    wanted = loss_by_definition(codes, weight, groups)
    assert np.count_nonzero(wanted) > 0
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("attributes", "shape"), ROWS.values(), ids=ROWS)
def test_unsigned_weights_give_the_same_integers(attributes, shape):
    model = between_quantizers("Conv", random_weight(shape), **attributes)
    unsigned = with_unsigned_weights(model, {"layer"})
    stored = {value.name: value.data_type for value in unsigned.graph.initializer}
    assert "w" not in stored
    assert stored["layer.unsigned_weight"] == TensorProto.UINT8
    given = model.graph.input[0].type.tensor_type.shape.dim
    codes = np.random.default_rng(1).integers(0, 256, [d.dim_value for d in given]).astype(np.uint8)
    # Not by the runtime: its kernels saturate with the signed weights on some processors.
    expected = simulate(model, {"x": codes}.__getitem__)["y"]
    actual = open_unguarded(unsigned.SerializeToString(), threads=1).infer(codes)
    np.testing.assert_array_equal(actual, expected)
    assert bound_pair_sums(unsigned).safe


def test_unsigned_weights_of_a_product_on_integers_give_the_same_integers():
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="m")]
    weight = random_weight((6, 5))
    model = graph_of(nodes, {"w": weight}, [3, 6], result=TensorProto.INT32)
    codes = np.random.default_rng(1).integers(0, 256, (3, 6)).astype(np.uint8)
    unsigned = with_unsigned_weights(model, {"m"})
    actual = open_unguarded(unsigned.SerializeToString(), threads=1).infer(codes)
    np.testing.assert_array_equal(actual, codes.astype(np.int32) @ np.asarray(weight, np.int32))
