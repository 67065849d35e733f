"""Writing a result so that it is whole or not there: beside its place first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.locking import temporary_folder
from qgait_ptq.system.writing import make_folder, remove_empty, write_whole


def write_result(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """Write the files of a result into a folder.

    Args:
        folder: made if need be; other files in it are left alone.
        contents: file name → what it holds.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    made = _make_folder(folder)
    try:
        with temporary_folder(folder) as beside:
            for name, content in contents.items():
                (beside / name).write_bytes(content)
            for name in contents:
                os.replace(beside / name, folder / name)
    except OSError as error:
        raise ConfigError(f"{folder}: the result cannot be written ({error.strerror or error})") from None
    finally:
        remove_empty(made)
    return folder


def write_text(path: Path, text: str) -> None:
    """Write one file, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None


def check_writable(folder: Path) -> None:
    """Find out before the work whether its result can be written; leaves nothing behind.

    Raises:
        ConfigError: it cannot.
    """
    made = _make_folder(folder)
    try:
        with temporary_folder(folder):
            pass
    except OSError as error:
        raise ConfigError(f"{folder}: not writable ({error.strerror or error})") from None
    finally:
        remove_empty(made)


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents, and list those that were made, innermost first."""
    try:
        return make_folder(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: not writable ({error.strerror or error})") from None
