"""Detection of processors on which integer sums saturate, and exact kernels for them.

A small model measures whether a runtime stores pair sums in 16 bits. Processor features are not used, so the
result is right on every operating system, in a virtual machine and under emulation.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qgait_ptq.errors import ModelError, ProcessorWarning
from qgait_ptq.exporters.metadata import is_proven_safe, parse_metadata
from qgait_ptq.runtime.sessions import ONNXRUNTIME, is_installed, model_name, open_unguarded

if TYPE_CHECKING:
    import onnx

# Processor features that select kernels, as Linux names them.
FEATURES = ("avx2", "asimd", "asimddp", "i8mm", "sve")
EXACT_FEATURES = ("avx_vnni", "avx512_vnni", "amx_int8")
LARGEST_CODE, LARGEST_WEIGHT, CHANNELS = 255, 127, 32


def describe_processor() -> str:
    """Return the architecture of this processor and its relevant features, such as ``x86_64 (avx2)``."""
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                flags.update(line.split(":", 1)[1].split())
                break
    except OSError:
        pass  # not Linux
    # Under emulation, Linux lists features of the host. Exact features are left out if sums saturate.
    known = FEATURES if saturates(ONNXRUNTIME) else FEATURES + EXACT_FEATURES
    present = [name for name in known if name in flags]
    return platform.machine() + (f" ({', '.join(present)})" if present else "")


@lru_cache
def saturates(runtime: str) -> bool:
    """Return whether a runtime stores pair sums in saturating 16 bits on this processor. Measured once.

    Args:
        runtime: ``onnxruntime`` or ``openvino``.
    """
    session = open_unguarded(_saturating_model(), runtime, threads=1)
    batch = np.full((1, CHANNELS, 1, 1), LARGEST_CODE, np.uint8)
    return not bool((session.infer(batch) == 1).all())


def exact_model(model: Path | bytes, properties: Mapping[str, str], runtime: str) -> bytes | None:
    """Return a replacement for a model whose sums can saturate on this processor.

    A `ProcessorWarning` tells the user which kernels are used.

    Args:
        model: path of the file, or serialized model.
        properties: metadata of the model.
        runtime: runtime of the model.

    Returns:
        The model with exact kernels; None if the model is exact already, or if the runtime has none.

    Raises:
        ModelError: the file does not prove that it is exact, and onnx is not installed.
    """
    if is_proven_safe(parse_metadata(properties)):
        return None
    if not is_installed("onnx"):
        raise ModelError(
            f"{model_name(model)}: the file does not prove that its sums cannot saturate, and checking it "
            "needs onnx: pip install onnx, or quantize again with --weight-range safe"
        )
    if not saturates(runtime):
        return None
    # Late import: for safe files, onnxruntime and numpy are enough.
    import onnx

    from qgait_ptq.reference.pair_sums import bound_pair_sums

    network = (
        onnx.load(model, load_external_data=False)
        if isinstance(model, Path)
        else onnx.load_from_string(model)
    )
    sums = bound_pair_sums(network)
    if sums.safe:
        return None
    exact = exact_network(network) if runtime == ONNXRUNTIME and not sums.unknown else None
    remedy = (
        "its exact kernels are used, which are slower"
        if exact is not None
        else "it has no exact kernels: THE EMBEDDINGS ARE WRONG"
    )
    name = model_name(model)
    warnings.warn(
        f"{name}: {sums.verdict()}. {runtime} saturates on this processor, {describe_processor()}; {remedy}. "
        "Quantize again with --weight-range safe for a file that is exact and fast on every processor",
        ProcessorWarning,
        stacklevel=3,
    )
    return None if exact is None else bytes(exact.SerializeToString())


def exact_network(network: onnx.ModelProto) -> onnx.ModelProto:
    """Return a network that onnxruntime computes exactly here; the same network if that is exact."""
    from qgait_ptq.reference.pair_sums import bound_pair_sums
    from qgait_ptq.runtime.unsigned_weights import with_unsigned_weights

    unsafe = {layer.layer for layer in bound_pair_sums(network).unsafe}
    return with_unsigned_weights(network, unsafe) if unsafe and saturates(ONNXRUNTIME) else network


def _saturating_model() -> bytes:
    """Return a convolution that gives 1 in every channel, or less if pair sums saturate."""
    from onnx import TensorProto, helper, numpy_helper

    total = CHANNELS * LARGEST_WEIGHT * LARGEST_CODE
    constants: dict[str, Any] = {
        "one": np.float32(1),
        "byte": np.uint8(0),
        "weight": np.full((CHANNELS, CHANNELS, 1, 1), LARGEST_WEIGHT, np.int8),
        "scales": np.full(CHANNELS, 1 / total, np.float32),
        "zeros": np.zeros(CHANNELS, np.int8),
        "step": np.float32(1 / 64),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "byte"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["kernel"], axis=0),
        helper.make_node("Conv", ["values", "kernel"], ["sums"], kernel_shape=[1, 1]),
        helper.make_node("QuantizeLinear", ["sums", "step", "byte"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "step", "byte"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, CHANNELS, 1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return bytes(model.SerializeToString())
