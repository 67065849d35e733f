"""A quantized part of a network, run by a runtime inside the network that it was taken from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qgait_ptq.errors import ModelError
from qgait_ptq.graph.submodule_shapes import Replacement, parse_shapes
from qgait_ptq.runtime.sessions import ONNXRUNTIME, run_session
from qgait_ptq.runtime.written_file import open_file


def load_submodule(
    path: str | Path, threads: int | None = None, runtime: str = ONNXRUNTIME
) -> torch.nn.Module:
    """Load a file that holds a part of a network, to be put back in its place.

    The module takes and gives what the part did, on the device and in the type of what it is given. There are
    no gradients.

    Example:
        >>> network.Backbone = qgait_ptq.load_submodule("out/model.onnx")  # doctest: +SKIP

    Args:
        path: written by ``quantize(..., submodule=NAME)`` or ``--capture-submodule NAME``.
        threads: of the runtime for one call; None lets it choose.
        runtime: ``onnxruntime`` or ``openvino``.

    Raises:
        ModelError: see `open_file`; or the file holds a whole network.
    """
    path = Path(path)
    session, metadata = open_file(path, runtime, threads)
    described = metadata.get("model", {}).get("submodule")
    if described is None:
        raise ModelError(f"{path}: holds a whole network; qgait_ptq.Embedder runs it")

    def run(frames: Tensor) -> Tensor:
        values = frames.detach().to("cpu", torch.float32).contiguous().numpy()
        return torch.from_numpy(run_session(session, values)).to(frames.device, frames.dtype)

    return Replacement(run, parse_shapes(described)).eval()
