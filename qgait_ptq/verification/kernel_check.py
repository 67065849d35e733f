"""Check of a runtime's integer convolutions on this processor, before calibration.

One layer of a real size runs on random codes and is compared with the integer reference. The check finds
saturating pair sums (x86 without VNNI) and wrong kernels of onnxruntime 1.23 on processors with AMX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.errors import ExportError
from qgait_ptq.placement.layers import LayerShape
from qgait_ptq.quantizer.pair_order import INT16_MAX
from qgait_ptq.reference.interpreter import simulate
from qgait_ptq.runtime.exactness import describe_processor, exact_network
from qgait_ptq.runtime.sessions import ONNXRUNTIME, open_unguarded

LARGEST_CODE, LARGEST_WEIGHT = 255, 127
SPACE = 9  # size of each spatial axis of the input
TOLERANCE = 1  # runtimes other than onnxruntime can round ties differently


def check_kernels(layers: Sequence[LayerShape], runtime: str) -> None:
    """Compare a runtime's convolutions with the integer reference.

    Args:
        layers: layers of the network. The first layer and the layer with the largest sums are checked, among
            layers that can saturate if there are any.
        runtime: ``onnxruntime`` or ``openvino``.

    Raises:
        ExportError: the runtime's integers are wrong on this processor; the text says what to do.
    """
    candidates = [layer for layer in layers if layer.can_saturate] or list(layers)
    if not candidates:
        return
    largest = max(candidates, key=lambda layer: math.prod(layer.weight[1:]))
    for layer in dict.fromkeys((candidates[0], largest)):
        model = _one_layer(layer)
        codes = _codes(layer)
        expected = simulate(model, {"x": codes}.__getitem__)["integers"].astype(np.int64)
        deployed = exact_network(model) if runtime == ONNXRUNTIME else model
        actual = open_unguarded(deployed.SerializeToString(), runtime, threads=1).infer(codes)
        wrong = np.abs(np.rint(actual).astype(np.int64) - expected) > TOLERANCE
        if wrong.any():
            raise ExportError(_fault(layer, runtime, float(wrong.mean())))


def _fault(layer: LayerShape, runtime: str, share: float) -> str:
    from importlib.metadata import version

    kernel = "×".join(map(str, layer.weight))
    text = (
        f"{runtime} {version(runtime)} computes wrong integers on this processor, {describe_processor()}: "
        f"{100 * share:.1f} % of the outputs of a layer like {layer.name} ({kernel}) differ from exact sums"
    )
    if not layer.can_saturate:
        return f"{text}. The weights are in the safe range, so {runtime} has a bug: install another version"
    return (
        f"{text}. It stores pair sums in 16 bits, where full-range weights saturate: use "
        "--weight-range safe, or quantize on a processor with VNNI"
    )


def _codes(layer: LayerShape) -> NDArray[np.uint8]:
    """Return codes like those of silhouettes and activations: many largest ones, zeros, and others."""
    rng = np.random.default_rng(0)
    space = [max(SPACE, size) for size in layer.weight[2:]]
    shape = (1, layer.weight[1] * layer.groups, *space)
    between = rng.integers(0, LARGEST_CODE + 1, shape)
    kind = rng.random(shape)
    return np.where(kind < 0.5, LARGEST_CODE, np.where(kind < 0.75, 0, between)).astype(np.uint8)


def _weights(layer: LayerShape) -> NDArray[np.int8]:
    """Return random weights up to the limits of the file, with neighbours of the same sign."""
    rng = np.random.default_rng(1)
    half = LARGEST_WEIGHT if layer.can_saturate else INT16_MAX // LARGEST_CODE // 2
    signs = np.where(rng.random((layer.weight[0], *[1] * (len(layer.weight) - 1))) < 0.5, -1, 1)
    weight = signs * rng.integers(0, half + 1, layer.weight)
    return weight.astype(np.int8)


def _one_layer(layer: LayerShape) -> onnx.ModelProto:
    """Return a convolution between quantizers. Its output has scale 1, so that values equal integers."""
    weight = _weights(layer)
    largest_sum = float(np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(1).max()) * LARGEST_CODE
    constants: dict[str, Any] = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "middle": np.uint8(128),
        "weight": weight,
        "scales": np.full(len(weight), 127 / max(largest_sum, 1), np.float32),
        "zeros": np.zeros(len(weight), np.int8),
    }
    spatial, channels = weight.ndim - 2, weight.shape[1] * layer.groups
    attributes: dict[str, Any] = {
        "group": layer.groups,
        "kernel_shape": weight.shape[2:],
        "pads": [0] * 2 * spatial,
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["kernel"], axis=0),
        helper.make_node("Conv", ["values", "kernel"], ["sums"], name="layer", **attributes),
        helper.make_node("QuantizeLinear", ["sums", "one", "middle"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "one", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, channels, *[None] * spatial])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model
