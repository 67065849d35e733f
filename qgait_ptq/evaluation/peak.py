"""Peak speed of a machine: a sequence of large convolutions, in integers or in float."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.evaluation.sampling import interleave
from qgait_ptq.evaluation.workload import BenchmarkSetting
from qgait_ptq.runtime.exact_sessions import open_session

PEAK_CHANNELS, PEAK_SIZE, PEAK_FRAMES = 512, (16, 11), 30  # sizes of a network's deepest layers
PEAK_LAYERS = 3  # enough that conversions of the layout around them do not matter


def measure_peak(setting: BenchmarkSetting, integer: bool) -> float:
    """Return the multiply-accumulates of large 3×3 convolutions per second of CPU time."""
    session = open_session(_peak_model(integer).SerializeToString(), setting.runtime, setting.threads)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (PEAK_FRAMES, PEAK_CHANNELS, *PEAK_SIZE), dtype=np.uint8)
    values = batch.astype(session.inputs[0].dtype)
    (samples,) = interleave([lambda: session.infer(values)], max(3, setting.rounds // 2), setting.seconds)
    macs = PEAK_LAYERS * PEAK_FRAMES * PEAK_SIZE[0] * PEAK_SIZE[1] * PEAK_CHANNELS**2 * 9
    return macs / statistics.median(sample.cpu for sample in samples)


def _peak_model(integer: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    # 7-bit weights are exact on every processor, so that no slower kernels are used.
    weight = rng.integers(-63, 64, (PEAK_CHANNELS, PEAK_CHANNELS, 3, 3)).astype(np.int8)
    constants: dict[str, Any] = {"weight": weight if integer else weight.astype(np.float32)}
    nodes = []
    kernel, values = "weight", "x"
    if integer:
        constants |= {"scale": np.float32(1), "zero": np.uint8(0)}
        constants |= {"scales": np.full(PEAK_CHANNELS, 1e-4, np.float32)}
        constants |= {"zeros": np.zeros(PEAK_CHANNELS, np.int8)}
        nodes.append(helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["kernel"], axis=0))
        nodes.append(helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["values"]))
        kernel, values = "kernel", "values"
    for layer in range(PEAK_LAYERS):
        summed = f"sums_{layer}"
        nodes.append(helper.make_node("Conv", [values, kernel], [summed], pads=[1, 1, 1, 1]))
        values = summed
        if integer:
            rounded, values = f"integers_{layer}", f"values_{layer}"
            nodes.append(helper.make_node("QuantizeLinear", [summed, "scale", "zero"], [rounded]))
            nodes.append(helper.make_node("DequantizeLinear", [rounded, "scale", "zero"], [values]))
    nodes.append(helper.make_node("ReduceMax", [values], ["result"]))  # a small output takes no time to copy
    element = TensorProto.UINT8 if integer else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("x", element, ["n", PEAK_CHANNELS, *PEAK_SIZE])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return model
