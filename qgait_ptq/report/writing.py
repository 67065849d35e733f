"""Writing a result completely or not at all: to a temporary folder first, then by renaming."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.locking import temporary_folder
from qgait_ptq.system.writing import make_folder, remove_empty, remove_file, write_whole

OLDER = "old"  # folder of an older result that is moved aside
REPORT = "report.json"  # each result has one
OPTIONAL = ("recipe.yaml", "float.onnx", "model.pt2")  # files that some results have
# In the order of writing. Before, older files are moved aside in the reverse order. So a report is never
# beside the model of another result, nor an optional file beside another report, even if the run is killed.
RESULT_FILES = ("model.onnx", "report.html", REPORT, *OPTIONAL)


def write_result(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """Write the files of a result into a folder.

    Where the folder holds another result, files of it that the new result does not have are removed: they
    would be taken for those of the new one.

    Args:
        folder: output directory. It is created if needed, and all other files in it are kept.
        contents: content of each file, by its name, which is one of `RESULT_FILES`.

    Returns:
        The output directory.

    Raises:
        ConfigError: the folder cannot be written, the disk is full, or a folder has the name of a file. No
            files are left behind, and an older result stays as it was.
    """
    made = _make_folder(folder)
    try:
        _check_names(folder, contents)
        with temporary_folder(folder, rescue=partial(_bring_back, folder)) as beside:
            for name, content in contents.items():
                (beside / name).write_bytes(content)
            with _moved_aside(folder, beside / OLDER, contents):
                for name in sorted(contents, key=RESULT_FILES.index):
                    os.replace(beside / name, folder / name)
    except OSError as error:
        raise _refusal(folder, "the result cannot be written", error) from None
    finally:
        remove_empty(made)
    return folder


def _bring_back(folder: Path, killed: Path) -> None:
    """Bring an older result back that a killed run moved aside, unless the newer one has its report."""
    older = killed / OLDER
    if os.path.lexists(older / REPORT) and os.path.lexists(folder / REPORT):
        return
    for name in RESULT_FILES:
        if os.path.lexists(older / name):
            os.replace(older / name, folder / name)


@contextmanager
def _moved_aside(folder: Path, aside: Path, contents: Mapping[str, bytes]) -> Iterator[None]:
    """Move the files of an older result to another folder. An error in the block brings them back."""
    stale = OPTIONAL if os.path.lexists(folder / REPORT) else ()
    names = {name for name in (*contents, *stale) if _is_file(folder / name)}
    older = sorted(names, key=RESULT_FILES.index)
    aside.mkdir()
    try:
        for name in reversed(older):
            os.replace(folder / name, aside / name)
        yield
    except BaseException:
        for name in sorted(contents, key=RESULT_FILES.index, reverse=True):
            if name not in older or os.path.lexists(aside / name):  # otherwise, it is the older one
                remove_file(folder / name)
        for name in older:
            with suppress(FileNotFoundError):  # not moved aside yet
                os.replace(aside / name, folder / name)
        raise


def _check_names(folder: Path, names: Iterable[str]) -> None:
    """Check that no folder has the name of a file to write.

    Raises:
        ConfigError: names the folder.
    """
    for path in (folder / name for name in names):
        if os.path.lexists(path) and not _is_file(path):
            raise ConfigError(
                f"{path}: a folder has the name of a file of the result; rename it, or choose another output "
                "directory"
            )


def _is_file(path: Path) -> bool:
    """Return whether there is a file, or a link of any kind."""
    return path.is_symlink() or (path.exists() and not path.is_dir())


def write_text(path: Path, text: str) -> None:
    """Write one file, completely or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise _refusal(path, "the file cannot be written", error) from None


def check_writable(folder: Path, names: Iterable[str] = RESULT_FILES) -> None:
    """Check before a run that its result can be written. No files are left behind.

    Args:
        folder: output directory.
        names: names of the files that the run can write.

    Raises:
        ConfigError: the folder cannot be written, or a folder has the name of a file.
    """
    made = _make_folder(folder)
    try:
        _check_names(folder, names)
        with temporary_folder(folder, rescue=partial(_bring_back, folder)):
            pass
    except OSError as error:
        raise _refusal(folder, "the folder cannot be written", error) from None
    finally:
        remove_empty(made)


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents, and return the folders that were made, innermost first."""
    try:
        return make_folder(folder)
    except OSError as error:
        raise _refusal(folder, "the folder cannot be written", error) from None


def _refusal(path: Path, problem: str, error: OSError) -> ConfigError:
    if error.filename in [str(path / name) for name in RESULT_FILES]:
        path = Path(error.filename)  # the file that cannot be replaced
    return ConfigError(
        f"{path}: {problem} ({error.strerror or error}); free disk space or choose another path"
    )
