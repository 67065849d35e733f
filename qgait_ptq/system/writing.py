"""Writing a file completely or not at all: to a temporary file first, then by renaming."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write one file.

    Args:
        path: path of the file.
        content: content of the file.

    Raises:
        OSError: the file cannot be written. No new file is left behind, and an older file is not changed.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing. It is renamed when the block ends without an error.

    The temporary file has a fixed name, so that the next run replaces it after a kill.

    Raises:
        OSError: the file cannot be written. No new file is left behind, and an older file is not changed.
    """
    part = part_of(path)
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        remove_file(part)
        raise


def beside(path: Path, name: str) -> Path:
    """Return a path in the same folder, whose name is made from that of another path.

    Args:
        path: path; ``.`` and ``..`` are resolved, since they have no name.
        name: the new name, with ``{}`` for the name of the path.
    """
    if path.name in ("", ".."):
        path = path.resolve()
    return path.with_name(name.format(path.name)) if path.name else path / name.format("root")


def part_of(path: Path) -> Path:
    """Return the path of the temporary file of a file."""
    return path.with_name(f".{path.name}.part")


def remove_file(path: Path) -> None:
    """Remove a file if possible."""
    with suppress(OSError):
        path.unlink()


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents, and return the folders that were made, innermost first.

    Raises:
        OSError: the folder cannot be made. No new folders are left behind.
    """
    made: list[Path] = []
    try:
        for parent in reversed([folder, *folder.parents]):
            if not parent.exists():
                parent.mkdir(exist_ok=True)  # another run can make it at the same time
                made.insert(0, parent)
        if not folder.is_dir():
            raise NotADirectoryError(20, "Not a directory")
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, until one is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
