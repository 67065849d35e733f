"""A workload: how a file is run when its speed and memory are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.runtime.sessions import Session


@dataclass(frozen=True)
class BenchmarkSetting:
    """How files are run."""

    runtime: str = "onnxruntime"
    threads: int = 1
    frames: int = 30
    batch: int = 1
    rounds: int = 9
    seconds: float = 0.3


def example_inputs(session: Session, setting: BenchmarkSetting) -> list[NDArray[Any]]:
    """Random binary silhouettes, or other values, of the session's own types and sizes."""
    rng = np.random.default_rng(0)
    return [given.example(setting.batch, setting.frames, rng) for given in session.inputs]
