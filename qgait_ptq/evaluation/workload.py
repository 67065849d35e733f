"""Workload of a measurement of speed and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.runtime.sessions import Session


@dataclass(frozen=True)
class BenchmarkSetting:
    """Settings of a measurement: runtime, threads, frames, batch size, rounds, and seconds of a sample."""

    runtime: str = "onnxruntime"
    threads: int = 1
    frames: int = 30
    batch: int = 1
    rounds: int = 9
    seconds: float = 0.3


def example_inputs(session: Session, setting: BenchmarkSetting) -> list[NDArray[Any]]:
    """Return random binary silhouettes, or other values, in the types and sizes of a session."""
    rng = np.random.default_rng(0)
    return [entry.example(setting.batch, setting.frames, rng) for entry in session.inputs]
