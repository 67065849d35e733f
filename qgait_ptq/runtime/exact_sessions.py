"""Loading a file so that it computes exactly on this processor, if the runtime has exact kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from qgait_ptq.errors import ModelError, QgaitError, first_line
from qgait_ptq.exporters.metadata import parse_metadata
from qgait_ptq.runtime.exactness import exact_model
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, SessionInput, model_name, open_unguarded

LARGEST_FRAME, LARGEST_INPUT = 2**22, 2**26  # values, product of the fixed dimensions of an input


def open_session(
    model: Path | bytes, runtime: str = ONNXRUNTIME, threads: int | None = None, spinning: bool = True
) -> Session:
    """Load an ONNX model on the CPU so that it computes exactly, if the runtime has exact kernels.

    If integer sums of the file can saturate on this processor, onnxruntime uses its exact kernels, which are
    slower, and a `ProcessorWarning` says so. OpenVINO has none; then the warning says that results are wrong.

    Args:
        model: path of the file, or serialized model.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: threads for one call; None for the runtime's default.
        spinning: whether onnxruntime's threads wait actively between calls. Active waiting slows down other
            libraries in this process, such as torch.

    Raises:
        ModelError: the runtime cannot run the model.
        MissingExtraError: the runtime is not installed.
        ConfigError: the runtime is unknown.
    """
    session = open_unguarded(model, runtime, threads, spinning)
    _check_inputs(session.inputs, model_name(model))
    parse_metadata(session.properties, model_name(model))
    try:
        exact = exact_model(model, session.properties, runtime)
    except (QgaitError, Warning):
        raise
    except Exception as error:  # a hostile graph can raise any error
        detail = first_line(error)
        raise ModelError(f"{model_name(model)}: its integer layers cannot be read ({detail})") from error
    return session if exact is None else open_unguarded(exact, runtime, threads, spinning)


def _check_inputs(inputs: Sequence[SessionInput], name: str | Path) -> None:
    """Refuse a file whose inputs are not batches of sequences, or are too large."""
    if not inputs:
        raise ModelError(f"{name}: the model has no input")
    for entry in inputs:
        fixed = [size for size in entry.shape if size is not None]
        if len(entry.shape) < 2 or min(fixed, default=1) < 1:
            raise ModelError(
                f"{name}: its input {entry.name} has the shape {list(entry.shape)}, not [batch, frames, ...]"
            )
        if math.prod(entry.frame_shape) > LARGEST_FRAME or math.prod(fixed) > LARGEST_INPUT:
            raise ModelError(
                f"{name}: its input {entry.name} has the shape {list(entry.shape)}, which is too large"
            )
