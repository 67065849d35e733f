"""Stages of a run. They run in order, and each is timed and reported."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

from qgait_ptq.stages.lookups import checked_lookups
from qgait_ptq.stages.state import State
from qgait_ptq.system.device import exact_arithmetic, own_random_numbers
from qgait_ptq.system.progress import Advance, Progress, Silent


def nothing() -> None:
    """Do nothing when a step is done."""


class Stopwatch:
    """Passes progress on, and records the wall time of each stage.

    Attributes:
        seconds: wall time of each stage so far, by its name.
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
        """Pass on one line for the user."""
        self.progress.note(text)


class Stage(ABC):
    """One step of a run, from a state to the next.

    Attributes:
        name: name in progress bars, in the log and in the report.
    """

    name: ClassVar[str]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def wanted(self, state: State) -> bool:
        """Return whether the stage has anything to do for a state."""
        return True

    def steps(self, state: State) -> int | None:
        """Return how often `apply` will call `advance`; None if unknown."""
        return None

    @abstractmethod
    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Return the next state. The old state is not changed.

        Args:
            state: state after the earlier stages.
            advance: function to call after each step.
        """

    def run(self, state: State, progress: Progress) -> State:
        """Apply the stage if it has anything to do, and report its progress, notes and time.

        Args:
            state: state after the earlier stages.
            progress: receives the stage and its notes.
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
    """A stage that consists of inner stages. Each inner stage is reported and timed by itself."""

    @abstractmethod
    def run(self, state: State, progress: Progress) -> State:
        """Run the inner stages.

        Args:
            state: state after the earlier stages.
            progress: receives the inner stages.
        """

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Return the result of `run`, without progress."""
        return self.run(state, Silent())


def run_stages(stages: Sequence[Stage], state: State, progress: Progress | None = None) -> State:
    """Apply stages in order.

    Args:
        stages: stages to apply. Stages with nothing to do are skipped.
        state: first state.
        progress: receives stages and notes.

    Returns:
        The state after the last stage, with the time of each stage.
    """
    with exact_arithmetic(), own_random_numbers():
        for stage in stages:
            with checked_lookups(stage.name):
                state = stage.run(state, progress or Silent())
    return state
