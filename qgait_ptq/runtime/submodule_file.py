"""A quantized submodule, run by a runtime inside its original network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qgait_ptq.errors import ModelError
from qgait_ptq.graph.frame_counts import parse_frame_counts
from qgait_ptq.graph.submodule_shapes import Replacement, parse_shapes
from qgait_ptq.runtime.sessions import ONNXRUNTIME, run_session
from qgait_ptq.runtime.written_file import check_threads, open_file
from qgait_ptq.system.reading import as_path


def load_submodule(
    path: str | Path, threads: int | None = None, runtime: str = ONNXRUNTIME
) -> torch.nn.Module:
    """Load a file that holds a submodule, as a module to put back into the network.

    The module has the inputs and outputs of the submodule. It keeps the device and the type of its input. It
    has no gradients. At a frame count that the file does not take, it raises a `DataError`; see
    `Replacement.forward`.

    Example:
        >>> network.Backbone = qgait_ptq.load_submodule("out/model.onnx")  # doctest: +SKIP

    Args:
        path: path of a file from ``quantize(..., submodule=NAME)`` or ``--capture-submodule NAME``.
        threads: threads of the runtime for one call; None for the runtime's default.
        runtime: ``onnxruntime`` or ``openvino``.

    Raises:
        ModelError: the file holds a complete network, or cannot be opened; see `open_file`.
        ConfigError: the runtime is unknown, or `threads` is not an integer of at least one, or too large.
    """
    path = as_path(path, "the model", ModelError)
    file = open_file(path, runtime, check_threads(threads))
    session, metadata = file.session, file.metadata
    described = metadata.get("model", {}).get("submodule")
    if described is None:
        raise ModelError(f"{path}: the file holds a complete network; load it with qgait_ptq.Embedder")

    batch, frames_taken, *_ = session.inputs[0].shape

    def run(frames: Tensor) -> Tensor:
        values = frames.detach().to("cpu", torch.float32).contiguous()
        parts = [values] if batch is None else values.split(batch)
        given = torch.cat([torch.from_numpy(run_session(session, part.numpy())) for part in parts])
        return given.to(frames.device, frames.dtype)

    counts = parse_frame_counts(metadata["model"].get("frame_counts"), frames_taken)
    return Replacement(run, parse_shapes(described), counts).eval()
