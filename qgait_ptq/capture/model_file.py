"""Reading the bytes of a model file from an untrusted source."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

from qgait_ptq.errors import ModelError, first_line

LARGEST_FILE = 16 * 2**30  # bytes of a model


def read_file(path: Path) -> bytes:
    """Return the content of a regular file. A pipe or a device could be endless.

    Raises:
        ModelError: the file cannot be read, or is too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: the model cannot be read (not a regular file)")
        if status.st_size > LARGEST_FILE:
            raise ModelError(
                f"{path}: {status.st_size / 2**30:.1f} GiB; the limit is {LARGEST_FILE >> 30} GiB"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: the model cannot be read ({error.strerror or error})") from None


def archive_members(path: Path, data: bytes) -> list[zipfile.ZipInfo]:
    """Return the members of a zip archive; none for other files, such as those of torch before 1.6.

    Raises:
        ModelError: the archive is damaged.
    """
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return []
        return zipfile.ZipFile(io.BytesIO(data)).infolist()
    except Exception as error:  # damaged directories raise many kinds
        raise ModelError(f"{path}: a damaged archive ({first_line(error)})") from None
