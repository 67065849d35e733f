"""Writing a result completely or not at all: to a temporary folder first, then by renaming."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.locking import temporary_folder
from qgait_ptq.system.writing import make_folder, remove_empty, write_whole

REPORT = "report.json"  # each result has one
OPTIONAL = ("recipe.yaml", "float.onnx", "model.pt2")  # files that some results have


def write_result(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """Write the files of a result into a folder.

    Where the folder holds another result, files of it that the new result does not have are removed: they
    would be taken for those of the new one.

    Args:
        folder: output directory. It is created if needed, and all other files in it are kept.
        contents: content of each file, by its name.

    Returns:
        The output directory.

    Raises:
        ConfigError: the folder cannot be written, or the disk is full. No files are left behind.
    """
    made = _make_folder(folder)
    try:
        with temporary_folder(folder) as beside:
            for name, content in contents.items():
                (beside / name).write_bytes(content)
            stale = [name for name in OPTIONAL if name not in contents] if (folder / REPORT).exists() else []
            for name in contents:
                os.replace(beside / name, folder / name)
            for name in stale:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise _refusal(folder, "the result cannot be written", error) from None
    finally:
        remove_empty(made)
    return folder


def write_text(path: Path, text: str) -> None:
    """Write one file, completely or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise _refusal(path, "the file cannot be written", error) from None


def check_writable(folder: Path) -> None:
    """Check before a run that its result can be written. No files are left behind.

    Raises:
        ConfigError: the folder cannot be written.
    """
    made = _make_folder(folder)
    try:
        with temporary_folder(folder):
            pass
    except OSError as error:
        raise _refusal(folder, "the folder cannot be written", error) from None
    finally:
        remove_empty(made)


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents, and return the folders that were made, innermost first."""
    try:
        return make_folder(folder)
    except OSError as error:
        raise _refusal(folder, "the folder cannot be written", error) from None


def _refusal(path: Path, problem: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: {problem} ({error.strerror or error}); free disk space or choose another path"
    )
