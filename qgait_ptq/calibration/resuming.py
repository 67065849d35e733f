"""States of a long stage on disk: a run can be killed at any time and resumed with the same result."""

from __future__ import annotations

import io
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from qgait_ptq.errors import ConfigError, first_line
from qgait_ptq.system.exchanging import first_only
from qgait_ptq.system.processes import processes
from qgait_ptq.system.writing import make_folder, part_of, remove_empty, write_whole

PARTS = ("blocks", "end-to-end", "sensitivity-*")  # whose states are saved; files of other names stay


class SavedStates:
    """A folder with one file for each part of the stage. Without a folder (None), nothing is saved.

    Files are written under another name and renamed, so a killed run leaves the last complete state. Each
    file has the fingerprint of its run; states of other runs are refused. In a run of several processes, the
    first one reads and writes. States do not depend on the number of processes.
    """

    def __init__(self, folder: Path | None, fingerprint: str, resume: bool) -> None:
        """Prepare the folder; without `resume`, existing states are removed.

        Args:
            folder: folder of the states, created with the first one. Other files in it are left alone.
            fingerprint: digest of everything that determines the result.
            resume: whether to continue from existing states.
        """
        self.folder, self.fingerprint = folder, fingerprint
        if folder is not None and not resume and processes().first:
            self.remove(folder)

    def load(self, part: str) -> Any | None:
        """Return the state of a part; None if there is none.

        Raises:
            ConfigError: the state belongs to a run with other settings, or cannot be read.
        """
        path = self._path(part)
        return None if path is None else first_only(lambda: self._read(path))

    def _read(self, path: Path) -> Any | None:
        """Return the state in a file; None if there is none."""
        if not path.exists():
            return None
        try:
            saved = dict(torch.load(path, map_location="cpu", weights_only=True))
            fingerprint, state = saved["fingerprint"], saved["state"]
        except Exception as error:  # torch and pickle have no common base for a broken file
            raise ConfigError(
                f"{path}: not a saved state ({first_line(error)}); run without --resume"
            ) from None
        if fingerprint != self.fingerprint:
            raise ConfigError(
                f"{path} belongs to a run with other settings, data or network, or of another version; "
                "run without --resume"
            )
        return state

    def save(self, part: str, state: Any) -> None:
        """Save the state of a part.

        Raises:
            ConfigError: the file cannot be written, for example because the disk is full. The previous state
                is kept, and no partial file remains.
        """
        path = self._path(part)
        if path is None or not processes().first:
            return
        content = io.BytesIO()  # torch.save does not report why a file cannot be written
        torch.save({"fingerprint": self.fingerprint, "state": state}, content)
        made: list[Path] = []
        try:
            made = make_folder(path.parent)
            write_whole(path, content.getbuffer())
        except OSError as error:
            remove_empty(made)
            raise ConfigError(
                f"{path}: the state cannot be saved ({error.strerror or error}); free disk space or choose "
                "another folder, then continue with --resume"
            ) from None

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove all states, and the folder if nothing else is in it.

        Raises:
            ConfigError: the states cannot be removed.
        """
        try:
            for part in PARTS:
                state = f"{part}.pt"
                for path in (*folder.glob(state), *folder.glob(part_of(Path(state)).name)):
                    path.unlink()
        except OSError as error:
            raise ConfigError(
                f"{folder}: earlier states cannot be removed ({error.strerror or error}); remove the folder"
            ) from None
        remove_empty([folder])

    def _path(self, part: str) -> Path | None:
        if not any(fnmatch(part, known) for known in PARTS):
            raise ValueError(f"{part} is not in PARTS, so its state would not be removed")
        return None if self.folder is None else self.folder / f"{part}.pt"
