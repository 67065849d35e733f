"""Writing a file so that it is whole or not there: beside its place first, then renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write one file.

    Args:
        path: of it.
        content: what it holds.

    Raises:
        OSError: it cannot be written; nothing is left behind, and an older file stays as it was.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
