"""Finding the parameters of the quantizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgait_ptq.system.lazy import lazy_names

if TYPE_CHECKING:
    from qgait_ptq.calibration.learning_stages import CalibrateDistances, CollectFrames, Finetune
    from qgait_ptq.calibration.refit_stage import Refit
    from qgait_ptq.calibration.stages import ChooseClips, Correct, Equalize, SetRanges
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "learning_stages": ("CalibrateDistances", "CollectFrames", "Finetune"),
            "refit_stage": ("Refit",),
            "stages": ("ChooseClips", "Correct", "Equalize", "SetRanges"),
        },
    )

__all__ = [
    "CalibrateDistances",
    "ChooseClips",
    "CollectFrames",
    "Correct",
    "Equalize",
    "Finetune",
    "Refit",
    "SetRanges",
]
