"""Files in the user's cache folder that later runs read, with a limit of their size.

Each file begins with a digest of its content, so that a damaged one is noticed. A file is written completely
or not at all. Several runs can use a cache at the same time: while one writes a file, others do not.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.locking import locked
from qgait_ptq.system.writing import make_folder, remove_file, write_whole

PACKAGE = "qgait_ptq"
DIGEST_BYTES = hashlib.sha256().digest_size
LOCK = ".lock"


def user_cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/qgait_ptq``, or ``~/.cache/qgait_ptq`` if the variable is not set.

    Raises:
        RuntimeError: the user has no home folder.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / PACKAGE


class FileCache:
    """A folder of files by key. Every failure is a note: the caller then works without the cache."""

    def __init__(self, folder: Path, limit: int, note: Callable[[str], None]) -> None:
        """Make a cache; its folder is created with the first file.

        Args:
            folder: folder of the files, which holds nothing else.
            limit: largest size of all files together in bytes. The files that were not used for the longest
                time are removed first.
            note: receives one line for the user.
        """
        self.folder, self.limit = folder, limit
        self._note = note
        self._writes = True

    def has(self, key: str) -> bool:
        """Return whether there is a file; it can be damaged."""
        return os.path.isfile(self.folder / key)

    def read(self, key: str) -> bytes | None:
        """Return the content of a file; None if it is missing or damaged."""
        path = self.folder / key
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(f"{path}: the cached file cannot be read ({error.strerror or error}); it is not used")
            return None
        digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            self._note(f"{path}: the cached file is damaged; it is made again")
            return None
        with suppress(OSError):  # the time of its last use
            os.utime(path)
        return content

    def write(self, key: str, content: bytes) -> None:
        """Write a file, and remove old files beyond the limit. After a failure, nothing more is written."""
        path = self.folder / key
        if not self._writes or len(content) > self.limit:
            return
        try:
            make_folder(self.folder)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
            with suppress(ConfigError), locked(path):  # another run writes the same file
                write_whole(path, hashlib.sha256(content).digest() + content)
                self._trim()
        except OSError as error:
            self._writes = False
            self._note(f"{self.folder}: nothing is cached ({error.strerror or error})")

    def _trim(self) -> None:
        """Remove the files that were not used for the longest time, until the rest is within the limit."""
        files = sorted(self._files(), reverse=True)
        total = 0
        for _, size, path in files:
            total += size
            if total > self.limit:
                remove_file(path)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield the time of use, the size and the path of each file; unfinished files of killed runs, too."""
        for path in self.folder.iterdir():
            with suppress(OSError):  # another run removed it
                if path.suffix != LOCK and path.is_file():
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path
