"""Finding the parameters of the quantizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgait_ptq.system.lazy import lazy_names

if TYPE_CHECKING:
    from qgait_ptq.calibration.stages import (
        CalibrateDistances,
        ChooseClips,
        Correct,
        Equalize,
        Finetune,
        SetRanges,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "stages": ("CalibrateDistances", "ChooseClips", "Correct", "Equalize", "Finetune", "SetRanges"),
        },
    )

__all__ = [
    "CalibrateDistances",
    "ChooseClips",
    "Correct",
    "Equalize",
    "Finetune",
    "SetRanges",
]
