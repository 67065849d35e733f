"""Multiply-accumulates of a file at the frame count that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

POINTS = 3  # they determine a parabola


def macs_of_sequence(described: Mapping[str, Any], frames: int) -> int | None:
    """Return the multiply-accumulates of one sequence; None if the file does not record enough.

    Some run in each frame, some for each pair of frames, and some once in each sequence. The polynomial
    through the recorded frame counts has all of them.

    Args:
        described: section ``model`` of the file's metadata.
        frames: frame count.
    """
    if described.get("macs_frames") == frames:
        macs: int | None = described.get("macs")
        return macs
    known = {int(count): macs for count, macs in described.get("macs_by_frames", {}).items()}
    if described.get("macs_frames") is not None and described.get("macs") is not None:
        known.setdefault(described["macs_frames"], described["macs"])
    if frames in known:
        return known[frames]
    if len(known) < POINTS:  # files of older versions, or of few frame counts
        return None
    predicted = round(sum(_term(known, count, frames) for count in known))
    return predicted if predicted > 0 else None


def _term(known: Mapping[int, int], count: int, frames: int) -> Fraction:
    """Return the Lagrange term of one recorded frame count, exactly."""
    term = Fraction(known[count])
    for other in known:
        if other != count:
            term *= Fraction(frames - other, count - other)
    return term
