"""A log file of a run: stages, their times and notes, written while the run goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from qgait_ptq.errors import ConfigError
from qgait_ptq.report.plain import plain
from qgait_ptq.system.progress import Advance, Progress


class LoggedProgress:
    """Passes progress on, and writes it to a log file with date and time."""

    def __init__(self, listener: Progress, path: Path) -> None:
        """Begin a log.

        Args:
            listener: progress to pass everything on to.
            path: path of the log file; lines are appended to it.

        Raises:
            ConfigError: the log cannot be written.
        """
        self.listener, self.path = listener, path
        self._write(f"{path.name} begins")

    def stage(self, name: str, steps: int | None = None) -> AbstractContextManager[Advance]:
        """Enter a stage."""
        return self._stage(name, steps)

    def note(self, text: str) -> None:
        """Pass on one line for the user, and log it."""
        self.listener.note(text)
        self._write(text)

    @contextmanager
    def _stage(self, name: str, steps: int | None) -> Iterator[Advance]:
        self._write(f"{name}: begins" + (f", {steps} steps" if steps is not None else ""))
        started = time.perf_counter()
        try:
            with self.listener.stage(name, steps) as advance:
                yield advance
        except BaseException as error:
            self._write(f"{name}: stopped by {type(error).__name__}: {error}")
            raise
        self._write(f"{name}: {time.perf_counter() - started:.1f} s")

    def _write(self, line: str) -> None:
        """Append one line. Line breaks are escaped, so that a name cannot imitate a line of the log."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {plain(line)}\n")
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(
                f"{self.path}: the log cannot be written ({reason}); pass another --log-file"
            ) from None
