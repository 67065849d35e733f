"""States of a long stage on disk, so that a run killed at any moment goes on with the same result."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from qgait_ptq.errors import ConfigError


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
        """The state of a part; None where there is none.

        Raises:
            ConfigError: the state belongs to a run with other settings, or cannot be read.
        """
        path = self._path(part)
        if path is None or not path.exists():
            return None
        try:
            saved = torch.load(path, weights_only=True)
        except Exception as error:  # torch and pickle have no common base for a broken file
            raise ConfigError(f"{path}: not a saved state ({error}); run without --resume") from None
        if saved["fingerprint"] != self.fingerprint:
            raise ConfigError(
                f"{path} belongs to a run with other settings, data or network; run without --resume"
            )
        return saved["state"]

    def save(self, part: str, state: Any) -> None:
        """Keep the state of a part."""
        path = self._path(part)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".writing")
        torch.save({"fingerprint": self.fingerprint, "state": state}, beside)
        os.replace(beside, path)

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove all states; called when the run has its result."""
        if folder.is_dir():
            shutil.rmtree(folder)

    def _path(self, part: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{part}.pt"
