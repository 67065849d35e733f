"""Opening an exported file in the runtime of its target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgait_ptq.errors import ModelError, QgaitError, first_line
from qgait_ptq.exporters.metadata import parse_metadata
from qgait_ptq.onnx_graph.external_data import read_model_bytes
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session
from qgait_ptq.system.integers import check_integer
from qgait_ptq.system.reading import unchanged

MOST_THREADS = 1024


@dataclass(frozen=True)
class OpenedFile:
    """A file in a runtime.

    Attributes:
        session: session of the complete file.
        metadata: metadata that the toolkit wrote into the file.
        content: the serialized model.
    """

    session: Session
    metadata: dict[str, Any]
    content: bytes


def open_file(path: Path, runtime: str, threads: int | None = None) -> OpenedFile:
    """Load a file.

    Args:
        path: path of the file.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: threads of the runtime for one call; None for the runtime's default.

    Raises:
        ModelError: the file does not exist, is damaged, was not written by this toolkit, is for another
            runtime, or was replaced while it was loaded.
        MissingExtraError: the runtime is not installed.
        ConfigError: the runtime is unknown.
    """
    with unchanged(path, "the model", ModelError):
        content = read_model_bytes(path)
        # The path instead of the content: onnxruntime takes less than half of the memory then.
        session = open_session(path, runtime, threads)
    metadata = parse_metadata(session.properties, path)
    if metadata is None:
        raise ModelError(f"{path}: the ONNX file was not written by qgait-ptq; quantize the network first")
    _check_target(path, metadata, runtime)
    return OpenedFile(session, metadata, content)


def check_threads(threads: int | None) -> int | None:
    """Return the threads of one call as an integer; None for the runtime's default.

    Raises:
        ConfigError: it is not an integer of at least one, or more than `MOST_THREADS`.
    """
    return None if threads is None else check_integer(threads, "threads", 1, MOST_THREADS)


@contextmanager
def refuse_damage(path: Path) -> Iterator[None]:
    """Turn any failure to read or compute the graph of a file into a `ModelError` that names the file.

    Code that follows the nodes of a graph expects a graph from the toolkit. A hostile file can raise any
    error there; ``--debug`` shows the cause.

    Raises:
        ModelError: the block raised an error.
        MemoryError: there is not enough memory. The user may have asked for too much, with a sound file.
    """
    try:
        yield
    except (QgaitError, MemoryError):
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"{path}: damaged, or not written by qgait-ptq ({detail})") from error


def _check_target(path: Path, metadata: dict[str, Any], runtime: str) -> None:
    """Refuse a file for another runtime: it would be slow, or it would differ from the tested results."""
    target = metadata.get("target", {"name": ONNXRUNTIME, "runtimes": [ONNXRUNTIME]})
    if runtime not in target["runtimes"]:
        raise ModelError(
            f"{path}: the file is for the target {target['name']}, not for {runtime}; quantize for a target "
            f"of {runtime} ('qgait-ptq targets' lists them)"
        )
