"""Opening a file that the toolkit wrote, in the runtime that it was written for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qgait_ptq.errors import ModelError, QgaitError, first_line
from qgait_ptq.exporters.metadata import LARGEST_MODEL, parse_metadata
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session
from qgait_ptq.system.reading import check_file


def open_file(path: Path, runtime: str, threads: int | None = None) -> tuple[Session, dict[str, Any]]:
    """Load a file; gives what the toolkit wrote into it, too.

    Args:
        path: of the file.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: of the runtime for one call; None lets it choose.

    Raises:
        ModelError: no such file, not an ONNX file, none of this toolkit, one for another runtime, or a
            damaged one.
        MissingExtraError: the runtime is not installed.
        ConfigError: there is no such runtime.
    """
    check_file(path, LARGEST_MODEL, "the model", ModelError)
    session = open_session(path, runtime, threads)
    metadata = parse_metadata(session.properties, path)
    if metadata is None:
        raise ModelError(f"{path}: an ONNX file, but not one that qgait-ptq wrote")
    _check_target(path, metadata, runtime)
    return session, metadata


@contextmanager
def refuse_damage(path: Path) -> Iterator[None]:
    """Turn any failure to read or compute the graph of a file into a `ModelError` that names the file.

    Code that follows the nodes of a graph relies on what the toolkit writes. A hostile file can make it raise
    anything; ``--debug`` shows the cause.

    Raises:
        ModelError: something in it failed.
    """
    try:
        yield
    except QgaitError:
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"{path}: damaged, or not written by qgait-ptq ({detail})") from error


def _check_target(path: Path, metadata: dict[str, Any], runtime: str) -> None:
    """Refuse a file that was written for something else: it would run slowly, or not as it was tested."""
    target = metadata.get("target", {"name": ONNXRUNTIME, "runtimes": [ONNXRUNTIME]})
    if runtime not in target["runtimes"]:
        raise ModelError(
            f"{path}: written for the target {target['name']}, not for {runtime}; quantize with a target of "
            f"{runtime} ('qgait-ptq targets' lists them)"
        )
