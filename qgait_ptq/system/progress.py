"""Progress of the stages: one small protocol, so that a terminal, a notebook and a log can all listen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[], None]


class Progress(Protocol):
    """Is told which stage runs, and when a step of it is done."""

    def stage(self, name: str, steps: int | None = None) -> AbstractContextManager[Advance]:
        """Enter a stage; the function given is called after each of its steps.

        Args:
            name: what is being done, for a person.
            steps: how many steps there will be; None where that is not known.
        """
        ...

    def note(self, text: str) -> None:
        """Say one line that the user should know."""
        ...


class Silent:
    """Listens to nothing."""

    @contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[Advance]:
        """Do nothing."""
        yield lambda: None

    def note(self, text: str) -> None:
        """Do nothing."""
