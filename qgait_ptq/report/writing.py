"""Writing a result so that it is whole or not there: beside its place first, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from qgait_ptq.errors import ConfigError
from qgait_ptq.report.record import Report


def write_result(
    folder: Path, models: dict[str, bytes], report: Report, recipe: str | None, page: str
) -> Path:
    """Write models, ``report.json``, ``report.html`` and ``recipe.yaml`` into a folder.

    Args:
        folder: made if need be; other files in it are left alone.
        models: file name → serialized ONNX.
        report: of the run.
        recipe: its text; None writes no recipe.
        page: the report for people.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    contents = {**models, "report.json": _json_bytes(report), "report.html": page.encode()}
    if recipe is not None:
        contents["recipe.yaml"] = recipe.encode()
    made = _make_folder(folder)
    try:
        beside = Path(tempfile.mkdtemp(dir=folder, prefix=".qgait-ptq-"))
        try:
            for name, content in contents.items():
                (beside / name).write_bytes(content)
            for name in contents:
                os.replace(beside / name, folder / name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        for parent in made:
            parent.rmdir()
        raise ConfigError(f"{folder}: the result cannot be written ({error.strerror or error})") from None
    return folder


def write_text(path: Path, text: str) -> None:
    """Write one file, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(text)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None


def check_writable(folder: Path) -> None:
    """Find out before the work whether its result can be written; leaves nothing behind.

    Raises:
        ConfigError: it cannot.
    """
    made = _make_folder(folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".qgait-ptq-"):
            pass
    except OSError as error:
        raise ConfigError(f"{folder}: not writable ({error.strerror or error})") from None
    finally:
        for parent in made:
            parent.rmdir()


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents; gives those that were made, innermost first."""
    made: list[Path] = []
    try:
        for parent in reversed([folder, *folder.parents]):
            if not parent.exists():
                parent.mkdir()
                made.insert(0, parent)
        if not folder.is_dir():
            raise NotADirectoryError(20, "Not a directory")
    except OSError as error:
        for parent in made:
            parent.rmdir()
        raise ConfigError(f"{folder}: not writable ({error.strerror or error})") from None
    return made


def _json_bytes(report: Report) -> bytes:
    return (json.dumps(report.to_json(), indent=1) + "\n").encode()
