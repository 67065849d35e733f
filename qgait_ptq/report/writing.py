"""Writing a result so that it is whole or not there: beside its place first, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qgait_ptq.errors import ConfigError
from qgait_ptq.whole_files import write_whole


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
