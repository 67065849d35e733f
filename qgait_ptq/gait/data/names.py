"""Names in the folders of a data set: ignored names, and the order of numbered files."""

from __future__ import annotations

import os
import re
import unicodedata
from os.path import splitext

IGNORED_NAMES = frozenset(("__macosx", "thumbs.db", "desktop.ini"))  # written by systems, in lower case

NaturalKey = tuple[tuple[str | int, ...], str]


def is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden, or is written by an operating system beside the data."""
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_broken(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link that leads nowhere."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def natural_key(name: str, *, with_suffix: bool = False) -> NaturalKey:
    """Return a sort key by which ``2.png`` comes before ``10.png``.

    Runs of digits are compared as numbers.

    Args:
        name: file name.
        with_suffix: whether the suffix belongs to the text that is compared. Then ``2-b.npy`` comes before
            ``2.npy``, as in plain order. Otherwise it decides only between names that are otherwise equal.

    Example:
        >>> sorted(["10.png", "2.PNG", "1.png"], key=natural_key)
        ['1.png', '2.PNG', '10.png']
    """
    pieces = re.split("([0-9]+)", name if with_suffix else splitext(name)[0])  # text and digits alternate
    return tuple(int(piece) if index % 2 else piece for index, piece in enumerate(pieces)), name


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case, such as ``.png``."""
    return splitext(name)[1].lower()


def composed(name: str) -> str:
    """Return a name with each accent as part of its letter. macOS separates them in names of files."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """Return a name as UTF-8 can store it. Bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
