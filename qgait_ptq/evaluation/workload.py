"""Workload of a measurement of speed and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError
from qgait_ptq.runtime.sessions import Session

USUAL_FRAMES, USUAL_BATCH = 30, 1


@dataclass(frozen=True)
class BenchmarkSetting:
    """Settings of a measurement.

    Attributes:
        runtime: runtime of the files.
        threads: threads of each call.
        frames: frames of a sequence; None for the number that files fix, or `USUAL_FRAMES`.
        batch: sequences in each call; None for the number that files fix, or `USUAL_BATCH`.
        rounds: number of samples of each file.
        seconds: shortest time of a sample.
    """

    runtime: str = "onnxruntime"
    threads: int = 1
    frames: int | None = None
    batch: int | None = None
    rounds: int = 9
    seconds: float = 0.3


def fitting_size(sessions: Mapping[str, Session], axis: int, usual: int, wanted: int | None = None) -> int:
    """Return the batch size or frame count at which all files can be measured.

    Args:
        sessions: sessions by the names of their files.
        axis: 0 for the batch size, 1 for the frame count.
        usual: size where none of the files fixes it.
        wanted: size that the user asks for; None for that of the files.

    Raises:
        ConfigError: a file takes one size only, which is not the wanted one, or not that of another file.
    """
    what = ("a batch of {}", "{} frames")[axis]
    fixed = {
        name: size
        for name, session in sessions.items()
        for size in (session.inputs[0].shape[axis],)
        if size is not None
    }
    chosen = wanted or next(iter(fixed.values()), usual)
    for name, size in fixed.items():
        if size != chosen:
            raise ConfigError(
                f"{name} takes {what.format(size)} only, and cannot be measured with {what.format(chosen)}"
            )
    return chosen


def example_inputs(session: Session, setting: BenchmarkSetting) -> list[NDArray[Any]]:
    """Return random binary silhouettes, or other values, in the types and sizes of a session."""
    rng = np.random.default_rng(0)
    batch, frames = setting.batch or USUAL_BATCH, setting.frames or USUAL_FRAMES
    return [entry.example(batch, frames, rng) for entry in session.inputs]
