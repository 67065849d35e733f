"""Progress of the stages: one protocol for terminal, notebook and log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[], None]


class Progress(Protocol):
    """Receives the running stage, its steps, and notes."""

    def stage(self, name: str, steps: int | None = None) -> AbstractContextManager[Advance]:
        """Enter a stage. The caller calls the returned function after each step.

        Args:
            name: name of the stage for people.
            steps: number of steps; None if unknown.
        """
        ...

    def note(self, text: str) -> None:
        """Receive one line for the user."""
        ...


class Silent:
    """Ignores progress."""

    @contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[Advance]:
        """Do nothing."""
        yield lambda: None

    def note(self, text: str) -> None:
        """Do nothing."""
