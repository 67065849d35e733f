"""A small file as quantize writes it, made by hand, for tests that damage it."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qgait_ptq as qg
from qgait_ptq.cli.verify import examine
from qgait_ptq.exporters.metadata import METADATA_KEY

FRAMES, SIZE, CHANNELS = 3, (4, 3), 5
SEQUENCE = np.tile(np.array([0, 255, 255], np.uint8), (FRAMES, SIZE[0], 1))
METADATA = {
    "model": {"raw": False, "streams": True, "channels": CHANNELS, "parts": SIZE[0] * SIZE[1]},
    "data": {"cut_columns": 0, "modalities": [0], "metric": "euclidean"},
    "target": {"name": "onnxruntime", "runtimes": ["onnxruntime"]},
    "pair_sums": {"safe": True},
}


def small_model(metadata=METADATA):
    """A quantized convolution over each frame and a maximum over frames, as quantize writes them."""
    rng = np.random.default_rng(0)
    constants = {
        "step": np.float32(1 / 255),
        "zero": np.uint8(0),
        "weight": rng.integers(-60, 60, (CHANNELS, 1, 3, 3)).astype(np.int8),
        "scales": np.full(CHANNELS, 0.01, np.float32),
        "zeros": np.zeros(CHANNELS, np.int8),
        "out_step": np.float32(0.05),
        "middle": np.uint8(128),
        "axes": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["silhouettes"], ["frames"], "frames", perm=[1, 0, 2, 3]),
        helper.make_node("DequantizeLinear", ["frames", "step", "zero"], ["values"], "values"),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["kernel"], "kernel", axis=0),
        helper.make_node("Conv", ["values", "kernel"], ["sums"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["sums", "out_step", "middle"], ["codes"], "quantize"),
        helper.make_node("DequantizeLinear", ["codes", "out_step", "middle"], ["floats"], "floats"),
        helper.make_node("ReduceMax", ["floats", "axes"], ["embedding"], "maximum", keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("silhouettes", TensorProto.UINT8, [1, "frames", *SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    describe(model, metadata)
    return model


def describe(model, metadata):
    """Replace the metadata of a model, given as a dictionary or as text."""
    del model.metadata_props[:]
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=text))


def use(path):
    """Do all that the toolkit does with a file, as a user would."""
    embedder = qg.Embedder(path, threads=1)
    embedder(SEQUENCE)
    qg.Embedder(path, threads=1, longest_piece=1)(SEQUENCE)
    examine(path, 1, FRAMES)


def save(model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path
