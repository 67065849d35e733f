"""A stage of a run, and how stages run: one after the other, timed, told, and undone where they do harm."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from qgait_ptq.stages.state import State
from qgait_ptq.system.progress import Advance, Progress, Silent


def nothing() -> None:
    """Tell nobody that a step is done."""


class Stopwatch:
    """Passes on what is told, and keeps the wall time of each stage.

    Attributes:
        seconds: stage → its time so far.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[Advance]:
        """Enter a stage."""
        started = time.perf_counter()
        with self.progress.stage(name, steps) as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def note(self, text: str) -> None:
        """Say one line that the user should know."""
        self.progress.note(text)


class Stage(ABC):
    """One step of a run from a state to the next.

    Attributes:
        name: for people, in bars, in the log and in the report.
    """

    name: ClassVar[str]

    def wanted(self, state: State) -> bool:
        """Whether the stage has something to do here."""
        return True

    def steps(self, state: State) -> int | None:
        """How often `apply` will call `advance`; None where that is not known."""
        return None

    @abstractmethod
    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Give the next state; the one given stays as it is.

        Args:
            state: what the stages before have given.
            advance: called after each step.
        """

    def run(self, state: State, progress: Progress) -> State:
        """Apply the stage if it is wanted, tell that it runs and what it notes, and keep its time.

        Args:
            state: what the stages before have given.
            progress: told.
        """
        if not self.wanted(state):
            return state
        watch = Stopwatch(progress)
        with watch.stage(self.name, self.steps(state)) as advance:
            after = self.apply(state, advance)
        for text in after.notes[len(state.notes) :]:
            progress.note(text)
        return after.timed(watch.seconds)


class CompoundStage(Stage):
    """A stage that consists of others, each told and timed by itself."""

    @abstractmethod
    def run(self, state: State, progress: Progress) -> State:
        """Run the inner stages.

        Args:
            state: result of the stages before.
            progress: receives the inner stages.
        """

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Return what `run` returns, without progress."""
        return self.run(state, Silent())


def run_stages(stages: Sequence[Stage], state: State, progress: Progress | None = None) -> State:
    """Apply stages in their order.

    Args:
        stages: those that are not wanted are left out.
        state: to begin with.
        progress: told what runs.

    Returns:
        The state behind the last one, with the time of each.
    """
    for stage in stages:
        state = stage.run(state, progress or Silent())
    return state
