"""Rewrites of every file for runtimes that lack an operator's mode: the same values in both runtimes."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from qgait_ptq.exporters.floor_pooling import floor_pools
from qgait_ptq.exporters.wrapped_padding import slice_wrapped_padding
from qgait_ptq.onnx_graph.view import attribute
from qgait_ptq.runtime.sessions import RUNTIMES, is_installed, open_unguarded

MAXIMA = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
MEANS = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
IN_EACH = [
    pytest.param(runtime, marks=pytest.mark.skipif(not is_installed(runtime), reason=f"needs {runtime}"))
    for runtime in RUNTIMES
]


def one_node(node, rank, constants=()):
    """A model of one node that reads ``x [1, 2, ...]`` with axes of any size."""
    shape = [1, 2, *(f"size{axis}" for axis in range(rank - 2))]
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in dict(constants).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def values_of(*sizes):
    return np.random.default_rng(0).standard_normal((1, 2, *sizes)).astype(np.float32)


@st.composite
def pools(draw):
    """Size, kernel, stride and padding of each axis."""
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        kernel = draw(st.integers(1, 4))
        padding = draw(st.integers(0, kernel // 2))
        axes.append((draw(st.integers(kernel, 9)), kernel, draw(st.integers(1, 5)), padding))
    return axes


@pytest.mark.parametrize("runtime", IN_EACH)
@settings(max_examples=25)
@given(axes=pools(), means=st.booleans(), count_padding=st.booleans())
def test_pooling_that_rounds_up_is_that_of_torch(runtime, axes, means, count_padding):
    sizes, kernel, strides, padding = (list(values) for values in zip(*axes, strict=True))
    window = {"kernel_shape": kernel, "strides": strides, "pads": padding * 2, "ceil_mode": 1}
    if means:
        node = helper.make_node("AveragePool", ["x"], ["y"], **window, count_include_pad=int(count_padding))
    else:
        node = helper.make_node("MaxPool", ["x"], ["y"], **window)
    model = one_node(node, len(axes) + 2)
    floor_pools(model)
    assert not any(attribute(node, "ceil_mode", 0) for node in model.graph.node)
    values = values_of(*sizes)
    pool = (MEANS if means else MAXIMA)[len(axes) - 1]
    settings = {"count_include_pad": count_padding} if means else {}
    expected = pool(torch.from_numpy(values), kernel, strides, padding, ceil_mode=True, **settings)
    found = open_unguarded(model.SerializeToString(), runtime, threads=1).infer(values)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_padding_as_wide_as_a_kernel_is_not_written():
    """onnxruntime refuses it. It can be needed where dilated windows round up."""
    window = {"kernel_shape": [3], "strides": [4], "dilations": [2], "ceil_mode": 1}
    model = one_node(helper.make_node("MaxPool", ["x"], ["y"], **window), 3)
    before = model.SerializeToString()
    floor_pools(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("runtime", IN_EACH)
@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=3),
    st.booleans(),
)
def test_circular_padding_joins_the_ends_of_axes(runtime, axes, names_axes):
    sizes, before, behind = zip(*axes, strict=True)
    assume(all(max(sides) <= size for size, *sides in axes))
    rank, padded = len(axes) + 2, list(range(2, len(axes) + 2))
    constants = {"pads": [*before, *behind], "axes": padded}
    if not names_axes:
        constants = {"pads": [0, 0, *before, 0, 0, *behind]}
    inputs = ["x", "pads", "", "axes"] if names_axes else ["x", "pads"]
    model = one_node(helper.make_node("Pad", inputs, ["y"], mode="wrap"), rank, constants)
    slice_wrapped_padding(model)
    assert {node.op_type for node in model.graph.node} <= {"Slice", "Concat", "Identity"}
    values = values_of(*sizes)
    expected = np.pad(values, [(0, 0), (0, 0), *zip(before, behind, strict=True)], mode="wrap")
    found = open_unguarded(model.SerializeToString(), runtime, threads=1).infer(values)
    np.testing.assert_array_equal(found, expected)


def test_other_padding_stays_as_it_is():
    for mode, pads in (("reflect", [0, 0, 1, 0, 0, 1]), ("wrap", [0, 0, -1, 0, 0, 0])):
        model = one_node(helper.make_node("Pad", ["x", "pads"], ["y"], mode=mode), 3, {"pads": pads})
        before = model.SerializeToString()
        slice_wrapped_padding(model)
        assert model.SerializeToString() == before


def test_computed_widths_stay_as_they_are():
    model = one_node(helper.make_node("Pad", ["x", "pads"], ["y"], mode="wrap"), 3)
    model.graph.input.append(helper.make_tensor_value_info("pads", TensorProto.INT64, [6]))
    onnx.checker.check_model(model)
    slice_wrapped_padding(model)
    assert [node.op_type for node in model.graph.node] == ["Pad"]
