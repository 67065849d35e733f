"""Reading of untrusted files: regular files only, up to a maximum size."""

from __future__ import annotations

import os
import reprlib
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qgait_ptq.errors import ConfigError, QgaitError

MEBIBYTE = 2**20
FILE_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_file(path: Path, largest: int, what: str, error: Callable[[str], QgaitError] = ConfigError) -> None:
    """Check that a path names a regular file up to a maximum size, before it is opened.

    Pipes and devices are refused, because opening or reading them can block.

    Args:
        path: path of the file.
        largest: maximum size in bytes.
        what: kind of file in errors, such as ``the recipe``.
        error: type of error to raise.

    Raises:
        QgaitError: the file does not exist, is a folder, a pipe or a device, or is too large.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise error(f"{path}: {what} cannot be read (no such file)") from None
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        raise error(f"{path}: {what} cannot be read ({_reason(problem)})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for is_kind, kind in FILE_KINDS if is_kind(status.st_mode)), "a special file")
        raise error(f"{path}: {what} cannot be read ({kind}, not a regular file)")
    if status.st_size > largest:
        size, limit = status.st_size / MEBIBYTE, largest / MEBIBYTE
        raise error(f"{path}: {what} has {size:.1f} MiB; the limit is {limit:.1f} MiB")


def as_path(given: Any, what: str, error: Callable[[str], QgaitError] = ConfigError) -> Path:
    """Return the path that a user passed.

    Args:
        given: a text or a path.
        what: kind of file in errors, such as ``the model``.
        error: type of error to raise.

    Raises:
        QgaitError: it is of another type.
    """
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        if isinstance(path, str):
            return Path(path)
    raise error(f"the path of {what} is of type {type(given).__name__}; pass a text or a pathlib.Path")


def read_bytes(
    path: Path, largest: int, what: str, error: Callable[[str], QgaitError] = ConfigError
) -> bytes:
    """Read a file. The arguments are those of `check_file`.

    Raises:
        QgaitError: the file fails `check_file`, cannot be read, or grew during reading.
    """
    check_file(path, largest, what, error)
    try:
        with path.open("rb") as file:
            # A read of `largest` bytes would reserve them, however small the file is.
            size = min(os.fstat(file.fileno()).st_size, largest)
            content = file.read(size + 1)
    except OSError as problem:
        raise error(f"{path}: {what} cannot be read ({_reason(problem)})") from None
    if len(content) > size:
        raise error(f"{path}: {what} grew while it was read. Read it again when it is complete")
    return content


@contextmanager
def unchanged(path: Path, what: str, error: Callable[[str], QgaitError] = ConfigError) -> Iterator[None]:
    """Check that a file stays the same while a block reads it several times.

    Args:
        path: path of the file.
        what: kind of file in errors, such as ``the model``.
        error: type of error to raise.

    Raises:
        QgaitError: the file was replaced, changed or deleted during the block.
    """
    before = _identity(path)
    yield
    if _identity(path) != before:
        raise error(f"{path}: {what} was replaced while it was read; read it again")


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells a file from its replacements; None if there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_text(path: Path, largest: int, what: str, error: Callable[[str], QgaitError] = ConfigError) -> str:
    """Read a file of UTF-8 text. The arguments are those of `check_file`.

    Raises:
        QgaitError: the file cannot be read, see `read_bytes`, or is not UTF-8.
    """
    content = read_bytes(path, largest, what, error)
    try:
        return content.decode()
    except UnicodeDecodeError as problem:
        raise error(f"{path}: {what} is not UTF-8 text (byte {problem.start}: {problem.reason})") from None


def shown(value: Any) -> str:
    """Return a value from a file as shortened text for errors."""
    try:
        return reprlib.repr(value)
    except ValueError:  # more digits than Python prints
        return f"a very large {type(value).__name__}"


def _reason(problem: Exception) -> str:
    return str(getattr(problem, "strerror", None) or problem)
