"""Writing a file so that it is whole or not there: beside its place first, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write one file.

    Args:
        path: of it.
        content: what it holds.

    Raises:
        OSError: it cannot be written; nothing is left behind, and an older file stays as it was.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; it takes its place when the block ends without an error.

    The file beside has a fixed name, so that the next run replaces one that a kill left.

    Raises:
        OSError: it cannot be written; nothing is left behind, and an older file stays as it was.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "wb") as file:
            yield file
        os.replace(beside, path)
    except BaseException:
        remove_file(beside)
        raise


def remove_file(path: Path) -> None:
    """Remove a file if that is possible."""
    with suppress(OSError):
        path.unlink()


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents, and list those that were made, innermost first.

    Raises:
        OSError: it cannot be made; nothing is left behind.
    """
    made: list[Path] = []
    try:
        for parent in reversed([folder, *folder.parents]):
            if not parent.exists():
                parent.mkdir(exist_ok=True)  # another run may make it at the same moment
                made.insert(0, parent)
        if not folder.is_dir():
            raise NotADirectoryError(20, "Not a directory")
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
