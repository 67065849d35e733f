"""What a machine can do at best: a large convolution, on integers or in float."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.runtime.sampling import interleave
from qgait_ptq.runtime.sessions import open_session
from qgait_ptq.runtime.workload import Setting

PEAK_CHANNELS, PEAK_SIZE = 256, (32, 22)  # of the convolution


def measure_peak(setting: Setting, integer: bool) -> float:
    """Multiply-accumulates of a large 3×3 convolution, for each second of CPU time."""
    height, width = PEAK_SIZE
    session = open_session(_peak_model(integer).SerializeToString(), setting.runtime, setting.threads)
    batch = np.random.default_rng(0).random((4, PEAK_CHANNELS, height, width), np.float32)
    (samples,) = interleave([lambda: session.infer(batch)], max(3, setting.rounds // 2), setting.seconds)
    macs = batch.shape[0] * height * width * PEAK_CHANNELS**2 * 9
    return macs / statistics.median(sample.cpu for sample in samples)


def _peak_model(integer: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (PEAK_CHANNELS, PEAK_CHANNELS, 3, 3)).astype(np.int8)
    constants: dict[str, Any] = {"weight": weight if integer else weight.astype(np.float32)}
    nodes = []
    given, kernel = "x", "weight"
    if integer:
        constants |= {"scale": np.float32(1 / 255), "zero": np.uint8(0), "out": np.float32(50)}
        constants |= {
            "scales": np.full(PEAK_CHANNELS, 0.01, np.float32),
            "zeros": np.zeros(PEAK_CHANNELS, np.int8),
        }
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["wd"], axis=0),
        ]
        given, kernel = "xd", "wd"
    nodes.append(helper.make_node("Conv", [given, kernel], ["y"], pads=[1, 1, 1, 1]))
    if integer:
        nodes += [
            helper.make_node("QuantizeLinear", ["y", "out", "zero"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "out", "zero"], ["result"]),
        ]
    shape: list[str | int | None] = ["n", PEAK_CHANNELS, *PEAK_SIZE]
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("result" if integer else "y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model
