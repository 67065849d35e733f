"""The graph that onnxruntime runs in place of a model on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from qgait_ptq.errors import ModelError
from qgait_ptq.runtime.without_telemetry import onnxruntime

REBUILT = "_token_"  # onnxruntime appends it and a number to the names of rebuilt nodes


def optimized_graph(model: onnx.ModelProto | bytes, *, portable: bool = False) -> onnx.ModelProto:
    """Return the graph that onnxruntime runs in place of a model.

    Args:
        model: exported model, as a protobuf or serialized.
        portable: whether to skip the last level of optimizations. It packs weights for this processor and
            does not change which kernels run.

    Raises:
        ModelError: onnxruntime cannot load the model, or the temporary folder is full.
    """
    content = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: log lines would print names of an unknown file unescaped
    if portable:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            return onnx.load(path)
        except Exception as error:  # onnxruntime's exceptions have no common public base
            detail = " ".join(str(error).split())[:200]
            raise ModelError(
                f"onnxruntime {onnxruntime.__version__} cannot load the model ({detail})"
            ) from None


def written_name(node_name: str) -> str:
    """Return the name in the original file of a node of an optimized graph."""
    return node_name.split(REBUILT)[0]
