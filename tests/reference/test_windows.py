"""Windows of the integer reference, against torch and onnxruntime."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from qgait_ptq.reference.arithmetic import Quantized
from qgait_ptq.reference.windows import convolve, pool
from qgait_ptq.runtime.sessions import open_onnxruntime

POOLS = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
ONE = np.ones((), np.float32)


@st.composite
def axes_of_windows(draw):
    """Size, kernel, stride, padding and dilation of each axis, as torch and onnxruntime both take them."""
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        # Without a value in each window, torch gives an infinity.
        padding = draw(st.integers(0, min(kernel // 2, dilation * (kernel - 1))))
        smallest = dilation * (kernel - 1) + 1 - (padding if dilation == 1 else 0)
        axes.append(
            (draw(st.integers(smallest, smallest + 8)), kernel, draw(st.integers(1, 5)), padding, dilation)
        )
    return axes


def codes(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def run(node, values, constants=()):
    """Compute one node on bytes in onnxruntime."""
    kind = TensorProto.INT32 if constants else TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, values.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in dict(constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (result,) = open_onnxruntime(model.SerializeToString(), threads=1).run(None, {"x": values})
    return result


@settings(max_examples=150)
@given(axes_of_windows(), st.booleans())
def test_a_maximum_is_that_of_torch_and_onnxruntime(axes, ceil_mode):
    sizes, kernel, strides, padding, dilations = (list(values) for values in zip(*axes, strict=True))
    node = helper.make_node(
        "MaxPool",
        ["x"],
        ["y"],
        kernel_shape=kernel,
        strides=strides,
        pads=padding * 2,
        dilations=dilations,
        ceil_mode=int(ceil_mode),
    )
    values = codes(1, 2, *sizes)
    found = pool(node, values)
    in_torch = POOLS[len(axes) - 1](
        torch.from_numpy(values).double(), kernel, strides, padding, dilations, ceil_mode
    )
    assert torch.isfinite(in_torch).all()
    np.testing.assert_array_equal(found, in_torch.numpy())
    np.testing.assert_array_equal(found, run(node, values))


def test_a_window_that_begins_in_the_padding_is_left_out():
    """With 5 values and stride 3, the third window would begin at position 6, behind one value of padding."""
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3], strides=[3], pads=[1, 1], ceil_mode=1)
    found = pool(node, np.arange(5, dtype=np.uint8).reshape(1, 1, 5))
    np.testing.assert_array_equal(found, [[[1, 4]]])


def test_a_window_of_padding_alone_gives_the_lowest_code():
    node = helper.make_node(
        "MaxPool", ["x"], ["y"], kernel_shape=[2], strides=[4], pads=[1, 1], dilations=[3]
    )
    values = codes(1, 1, 2)
    np.testing.assert_array_equal(pool(node, values), run(node, values))
    np.testing.assert_array_equal(pool(node, values.astype(np.int8)), [[[-128]]])


@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(9, 4, 1), (9, 3, 2), (10, 4, 3), (7, 2, 4)])
def test_padding_in_words_is_that_of_onnxruntime(word, size, kernel, stride):
    """torch writes numbers; files of other tools can have words."""
    values, weight = codes(1, 2, size), np.arange(-4, 2 * kernel - 4, dtype=np.int8).reshape(1, 2, kernel)
    windows = {"kernel_shape": [kernel], "strides": [stride], "auto_pad": word}
    maximum = helper.make_node("MaxPool", ["x"], ["y"], **windows)
    np.testing.assert_array_equal(pool(maximum, values), run(maximum, values))
    convolution = helper.make_node("ConvInteger", ["x", "weight"], ["y"], **windows)
    x, w = Quantized(values, ONE, np.uint8(0)), Quantized(weight, ONE, np.int8(0))
    sums = convolve(convolution, x, w, np.zeros(1))
    np.testing.assert_array_equal(sums, run(convolution, values, {"weight": weight}))
