"""Opening a file that the toolkit wrote, in the runtime that it was written for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgait_ptq.errors import ModelError
from qgait_ptq.export.metadata import parse_metadata
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, open_session


def open_file(path: Path, runtime: str, threads: int | None = None) -> tuple[Session, dict[str, Any]]:
    """Load a file; gives what the toolkit wrote into it, too.

    Args:
        path: of the file.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: of the runtime for one call; None lets it choose.

    Raises:
        ModelError: no such file, not an ONNX file, none of this toolkit, or one for another runtime.
        MissingExtraError: the runtime is not installed.
        ConfigError: there is no such runtime.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    session = open_session(path, runtime, threads)
    metadata = parse_metadata(session.properties)
    if metadata is None:
        raise ModelError(f"{path}: an ONNX file, but not one that qgait-ptq wrote")
    _check_target(path, metadata, runtime)
    return session, metadata


def _check_target(path: Path, metadata: dict[str, Any], runtime: str) -> None:
    """Refuse a file that was written for something else: it would run slowly, or not as it was tested."""
    target = metadata.get("target", {"name": ONNXRUNTIME, "runtimes": [ONNXRUNTIME]})
    if runtime not in target["runtimes"]:
        raise ModelError(
            f"{path}: written for the target {target['name']}, not for {runtime}; quantize with a target of "
            f"{runtime} ('qgait-ptq targets' lists them)"
        )
