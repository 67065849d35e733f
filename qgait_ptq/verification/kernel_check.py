"""Check a runtime's integer convolutions on this processor, before minutes of work depend on them.

One layer of a real size is run on random codes and compared with the integer reference. Known faults that
this finds: saturating pairs (x86 without VNNI), onnxruntime 1.23 on processors with AMX.
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
SPACE = 9  # places along each axis of the input
TOLERANCE = 1  # integer: runtimes other than onnxruntime may round a tie to its other side


def check_kernels(layers: Sequence[LayerShape], runtime: str) -> None:
    """Compare a runtime's convolutions with the integer reference.

    Args:
        layers: of the network; the first one and the one that sums most products are tried, of those that can
            saturate, if any can.
        runtime: ``onnxruntime`` or ``openvino``.

    Raises:
        ExportError: the runtime's integers are wrong on this processor; names it and what to do.
    """
    tried = [layer for layer in layers if layer.can_saturate] or list(layers)
    if not tried:
        return
    largest = max(tried, key=lambda layer: math.prod(layer.weight[1:]))
    for layer in dict.fromkeys((tried[0], largest)):
        model = _one_layer(layer)
        codes = _codes(layer)
        expected = simulate(model, {"x": codes}.__getitem__)["integers"].astype(np.int64)
        deployed = exact_network(model) if runtime == ONNXRUNTIME else model
        found = open_unguarded(deployed.SerializeToString(), runtime, threads=1).infer(codes)
        wrong = np.abs(np.rint(found).astype(np.int64) - expected) > TOLERANCE
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
        return (
            f"{text}. The weights are in the safe range, so this is a fault of {runtime}: use another version"
        )
    return (
        f"{text}. It adds pairs of products in 16 bits, and full-range weights saturate: use "
        "--weight-range safe, or quantize on a processor with VNNI"
    )


def _codes(layer: LayerShape) -> NDArray[np.uint8]:
    """Codes as of silhouettes and of activations: many at the largest, zeros, and some between."""
    rng = np.random.default_rng(0)
    space = [max(SPACE, size) for size in layer.weight[2:]]
    shape = (1, layer.weight[1] * layer.groups, *space)
    between = rng.integers(0, LARGEST_CODE + 1, shape)
    kind = rng.random(shape)
    return np.where(kind < 0.5, LARGEST_CODE, np.where(kind < 0.75, 0, between)).astype(np.uint8)


def _weights(layer: LayerShape) -> NDArray[np.int8]:
    """Random weights that are as large as the file's may be, with neighbours of the same sign."""
    rng = np.random.default_rng(1)
    half = LARGEST_WEIGHT if layer.can_saturate else INT16_MAX // LARGEST_CODE // 2
    signs = np.where(rng.random((layer.weight[0], *[1] * (len(layer.weight) - 1))) < 0.5, -1, 1)
    weight = signs * rng.integers(0, half + 1, layer.weight)
    return weight.astype(np.int8)


def _one_layer(layer: LayerShape) -> onnx.ModelProto:
    """A convolution between quantizers, whose output has step 1, so that its values are its integers."""
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
