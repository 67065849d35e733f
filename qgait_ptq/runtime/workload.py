"""A workload: how a file is run when its speed and memory are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.runtime.sessions import Session


@dataclass(frozen=True)
class Setting:
    """How files are run."""

    runtime: str = "onnxruntime"
    threads: int = 1
    frames: int = 30
    batch: int = 1
    rounds: int = 9
    seconds: float = 0.3


def example_input(session: Session, setting: Setting) -> NDArray[Any]:
    """Random binary silhouettes of the session's own type and sizes."""
    batch, frames, *frame_shape = session.input_shape
    shape = (batch or setting.batch, frames or setting.frames, *(size or 1 for size in frame_shape))
    silhouettes = np.random.default_rng(0).random(shape) < 0.3
    return silhouettes.astype(np.uint8) * 255 if session.takes_bytes else silhouettes.astype(np.float32)
