"""States of a long stage on disk, so that a run killed at any moment goes on with the same result."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import torch

from qgait_ptq.errors import ConfigError, first_line
from qgait_ptq.system.writing import make_folder, remove_empty, write_whole


class SavedStates:
    """A folder with one file for each part of the stage; None keeps nothing.

    Files are written beside and renamed, so a kill leaves the last whole state. All of them carry the run's
    fingerprint, and a state of another run is refused.
    """

    def __init__(self, folder: Path | None, fingerprint: str, resume: bool) -> None:
        """Stand before a run.

        Args:
            folder: is made when the first state is saved.
            fingerprint: of everything that decides the result.
            resume: whether to go on from the states found there; else they are removed.
        """
        self.folder, self.fingerprint = folder, fingerprint
        if folder is not None and not resume:
            self.remove(folder)

    def load(self, part: str) -> Any | None:
        """Return the state of a part; None where there is none.

        Raises:
            ConfigError: the state belongs to a run with other settings, or cannot be read.
        """
        path = self._path(part)
        if path is None or not path.exists():
            return None
        try:
            saved = dict(torch.load(path, weights_only=True))
            fingerprint, state = saved["fingerprint"], saved["state"]
        except Exception as error:  # torch and pickle have no common base for a broken file
            raise ConfigError(
                f"{path}: not a saved state ({first_line(error)}); run without --resume"
            ) from None
        if fingerprint != self.fingerprint:
            raise ConfigError(
                f"{path} belongs to a run with other settings, data or network; run without --resume"
            )
        return state

    def save(self, part: str, state: Any) -> None:
        """Keep the state of a part.

        Raises:
            ConfigError: it cannot be written, for example because the disk is full. The state before it
                stays, and no partial file is left behind.
        """
        path = self._path(part)
        if path is None:
            return
        content = io.BytesIO()  # torch hides why a file cannot be written
        torch.save({"fingerprint": self.fingerprint, "state": state}, content)
        made: list[Path] = []
        try:
            made = make_folder(path.parent)
            write_whole(path, content.getbuffer())
        except OSError as error:
            remove_empty(made)
            raise ConfigError(
                f"{path}: the state cannot be saved ({error.strerror or error}); free the disk or choose "
                "another place, then go on with --resume"
            ) from None

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove all states; called when the run has its result.

        Raises:
            ConfigError: they cannot be removed.
        """
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
        except OSError as error:
            raise ConfigError(
                f"{folder}: earlier states cannot be removed ({error.strerror or error})"
            ) from None

    def _path(self, part: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{part}.pt"
