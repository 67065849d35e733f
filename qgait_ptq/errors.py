"""What can go wrong through a user's input, each with what, where and what to do.

The command line turns a `QgaitError` into one line and exit code 2; everything else is our fault.
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
    "MissingExtraError",
    "ModelError",
    "ProcessorWarning",
    "QgaitError",
    "SequenceLengthWarning",
    "StageOrderError",
]


class QgaitError(Exception):
    """Base of all errors that a user's input causes. Its text names the fault, the place and the remedy."""


class ConfigError(QgaitError):
    """A setting or a recipe is not valid."""


class DataError(QgaitError):
    """A sequence, a data set or a partition cannot be used."""


class ModelError(QgaitError):
    """A model file cannot be loaded, or its weights do not fit."""


class CaptureError(QgaitError):
    """A network cannot be captured as a graph, or its graph computes something else than the network."""


class CalibrationError(QgaitError):
    """Ranges cannot be determined from the calibration data."""


class ExportError(QgaitError):
    """The quantized network cannot be written, or the written file disagrees with the simulation."""


class MissingExtraError(QgaitError):
    """An optional dependency is needed; the text names the extra that brings it."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional package: pip install 'qgait-ptq[{extra}]'")


class StageOrderError(RuntimeError):
    """A stage lacks what one before it should have given: an error of the program that put them in order."""


class SequenceLengthWarning(UserWarning):
    """A file takes one frame count only, and sequences of other lengths are repeated or cut."""


class ProcessorWarning(UserWarning):
    """A file's integer sums can saturate on this processor; the text says what is done about it."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, shortened, without terminal colours."""
    lines = [line.strip() for line in ESCAPE_CODE.sub("", str(error)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
