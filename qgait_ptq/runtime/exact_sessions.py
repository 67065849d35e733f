"""Loading a file so that it computes exactly on this processor, where that can be had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from qgait_ptq.errors import ModelError, QgaitError, first_line
from qgait_ptq.exporters.metadata import parse_metadata
from qgait_ptq.runtime.exactness import exact_model
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, SessionInput, model_name, open_unguarded

LARGEST_FRAME, LARGEST_INPUT = 2**22, 2**26  # numbers, of the fixed sizes of an input


def open_session(
    model: Path | bytes, runtime: str = ONNXRUNTIME, threads: int | None = None, spinning: bool = True
) -> Session:
    """Load an ONNX model on the CPU so that it computes exactly, where that can be had.

    A file whose integer sums can saturate on this processor gets onnxruntime's exact kernels, which are
    slower; `ProcessorWarning` says so. In OpenVINO there are none: the warning says that it is wrong.

    Args:
        model: file or serialized model.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: for one call; None lets the runtime choose.
        spinning: whether onnxruntime's threads wait actively between calls, which takes the cores from others
            in this process, such as torch.

    Raises:
        ModelError: it is no model that this runtime can run.
        MissingExtraError: the runtime is not installed.
        ConfigError: there is no such runtime.
    """
    session = open_unguarded(model, runtime, threads, spinning)
    _check_inputs(session.inputs, model_name(model))
    parse_metadata(session.properties, model_name(model))
    try:
        exact = exact_model(model, session.properties, runtime)
    except (QgaitError, Warning):
        raise
    except Exception as error:  # a hostile graph can make its readers raise anything
        detail = first_line(error)
        raise ModelError(f"{model_name(model)}: its integer layers cannot be read ({detail})") from error
    return session if exact is None else open_unguarded(exact, runtime, threads, spinning)


def _check_inputs(inputs: Sequence[SessionInput], name: str | Path) -> None:
    """Refuse a file that takes no batches of sequences, or ones that are too large."""
    if not inputs:
        raise ModelError(f"{name}: it has no input")
    for given in inputs:
        fixed = [size for size in given.shape if size is not None]
        if len(given.shape) < 2 or min(fixed, default=1) < 1:
            raise ModelError(
                f"{name}: its input {given.name} is {list(given.shape)}, not [batch, frames, ...]"
            )
        if math.prod(given.frame_shape) > LARGEST_FRAME or math.prod(fixed) > LARGEST_INPUT:
            raise ModelError(f"{name}: its input {given.name} is {list(given.shape)}, which is too large")
