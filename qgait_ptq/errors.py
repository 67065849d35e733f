"""Errors caused by a user's input. Each text says what happened, where, and what to do.

The command line prints a `QgaitError` as one line and exits with code 2. Any other error is a bug.
"""

from __future__ import annotations

import re

ESCAPE_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of a terminal

__all__ = [
    "CalibrationError",
    "CaptureError",
    "ConfigError",
    "DataError",
    "ExportError",
    "FixedSizeWarning",
    "MissingExtraError",
    "ModelError",
    "ProcessorWarning",
    "QgaitError",
    "SequenceLengthWarning",
    "StageOrderError",
]


class QgaitError(Exception):
    """Base of all errors that a user's input causes. Its text says what happened, where, and what to do."""


class ConfigError(QgaitError):
    """A setting or a recipe is not valid."""


class DataError(QgaitError):
    """A sequence, a data set or a partition cannot be used."""


class ModelError(QgaitError):
    """A model file cannot be loaded, or its weights do not fit."""


class CaptureError(QgaitError):
    """A network cannot be captured as a graph, or its graph computes other values than the network."""


class CalibrationError(QgaitError):
    """Ranges cannot be determined from the calibration data."""


class ExportError(QgaitError):
    """The quantized network cannot be written, or the written file disagrees with the simulation."""


class MissingExtraError(QgaitError):
    """An optional dependency is missing. The text names the extra that installs it."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional package: pip install 'qgait-ptq[{extra}]'")


class StageOrderError(RuntimeError):
    """A stage needs the result of a stage that has not run. The program ran its stages in the wrong order."""


class SequenceLengthWarning(UserWarning):
    """A file takes one frame count only, and sequences of other lengths are repeated or cut."""


class FixedSizeWarning(UserWarning):
    """A file takes one batch size or frame count only, although the network takes others."""


class ProcessorWarning(UserWarning):
    """Integer sums of a file can saturate on this processor. The text says how they are computed instead."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without terminal colours, at most 200 characters."""
    lines = [line.strip() for line in ESCAPE_CODE.sub("", str(error)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
