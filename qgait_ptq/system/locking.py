"""Locks of outputs, and temporary folders that the next run removes after a kill.

Both use `fcntl.flock`: the kernel releases a lock when its process ends, even by SIGKILL. A lock file of a
killed run therefore blocks no other run. Without `fcntl` (Windows) or locks in the file system, outputs are
not locked, and folders of killed runs stay.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import get_ident

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.writing import make_folder, remove_empty, remove_file

OWNER = ".owner"  # lock file inside a temporary folder
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_held: set[tuple[Path, int]] = set()


@contextmanager
def locked(*paths: Path | None) -> Iterator[None]:
    """Hold the locks of outputs, so that only one run at a time writes each of them.

    A lock is the file ``.NAME.lock`` beside the output, or in it if only the output is writable. A thread
    that holds a lock can take it again.

    Args:
        paths: files and folders that will be written; None is ignored.

    Raises:
        ConfigError: another run writes the output, or the lock file cannot be written.
    """
    with ExitStack() as locks:
        for path in paths:
            if path is not None:
                locks.enter_context(_locked(Path(os.path.realpath(path)), path))
        yield


@contextmanager
def temporary_folder(
    parent: Path, prefix: str = ".qgait-ptq-", rescue: Callable[[Path], None] = lambda folder: None
) -> Iterator[Path]:
    """Make a temporary folder, and remove those that killed runs left in the same folder.

    Args:
        parent: parent folder, in the file system of the result, so that files can be renamed.
        prefix: prefix of the folder's name, and of the names of folders to remove.
        rescue: receives each folder of a killed run before it is removed.

    Raises:
        OSError: the folder cannot be made.
    """
    _remove_abandoned(parent, prefix, rescue)
    folder, owner = parent / f"{prefix}{secrets.token_hex(6)}", None
    try:  # before the folder exists, so that a signal cannot leave it behind
        owner = _make_owned(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if owner is not None:
            os.close(owner)


@contextmanager
def temporary_files() -> Iterator[None]:
    """Put temporary files of this process and its children into one folder that the next run can remove."""
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    with ExitStack() as stack:
        try:
            made = temporary_folder(Path(tempfile.gettempdir()), "qgait-ptq-")
            folder = str(stack.enter_context(made))
        except OSError:  # full or not writable; the first use of a temporary file reports it
            yield
            return
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            tempfile.tempdir = before[0]
            os.environ.pop("TMPDIR")
            if before[1] is not None:
                os.environ["TMPDIR"] = before[1]


@contextmanager
def _locked(path: Path, shown: Path) -> Iterator[None]:
    """Hold the lock of one path."""
    inside = path.is_dir() and not os.access(path.parent, os.W_OK)
    file = (path if inside else path.parent) / f".{path.name}.lock"
    key = (file, get_ident())
    if key in _held:
        yield
        return
    made: list[Path] = []
    descriptor: int | None = None
    try:
        try:
            made = make_folder(file.parent)
            descriptor = _take(file)
            _write_owner(descriptor)
        except BlockingIOError:
            raise ConfigError(
                f"{shown}: another run ({_read_owner(file)}) writes this output; wait until it ends, or "
                "choose another path"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise ConfigError(
                    f"{shown}: not writable; its lock file {file.name} cannot be written "
                    f"({error.strerror or error})"
                ) from None
            remove_file(file)
        _held.add(key)
        yield
    finally:
        _held.discard(key)
        if descriptor is None:
            _remove_if_free(file)  # a signal may have come between the making of the file and its lock
        else:
            remove_file(file)  # the lock is still held, so no other run has it
            os.close(descriptor)
        remove_empty(made)


def _take(path: Path) -> int:
    """Open a lock file and take its lock.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be opened, or the system has no locks.
    """
    while True:
        descriptor = _open(path)
        try:
            _lock(descriptor)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another run removed the file between opening and locking


def _remove_if_free(path: Path) -> None:
    """Remove a lock file, unless another run holds its lock."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            _lock(descriptor)
            if _is_at(descriptor, path):
                remove_file(path)
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    flags = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | flags)  # a killed run of another user left it


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOLCK, "No locks on this system") from None
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is still the file at its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    """Write the process that holds the lock."""
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL):  # open for reading only: a file of another user
            raise


def _read_owner(file: Path) -> str:
    try:
        return file.read_text() or "just begun"
    except OSError:
        return "just ended"


def _make_owned(folder: Path) -> int | None:
    """Make a temporary folder, and take the lock that marks it as in use."""
    while True:
        with suppress(FileExistsError):  # another run is removing it
            folder.mkdir(mode=0o700)
        try:
            return _take(folder / OWNER)
        except (BlockingIOError, FileNotFoundError):
            continue  # another run removed it before it was locked
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            raise


def _remove_abandoned(parent: Path, prefix: str, rescue: Callable[[Path], None]) -> None:
    """Remove temporary folders of this user whose runs were killed."""
    user = getattr(os, "getuid", lambda: 0)()
    for folder in parent.glob(f"{prefix}*"):
        try:
            if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != user:
                continue
            owner = _take(folder / OWNER)
        except OSError:  # it is in use or gone, or there are no locks
            continue
        rescue(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)
