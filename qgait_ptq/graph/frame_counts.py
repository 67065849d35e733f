"""Frame counts that a network takes, and the conversion of sequences with other lengths.

Evaluation, `Embedder` and the commands use the same rule, so that a report describes what is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError


@dataclass(frozen=True)
class FrameCounts:
    """Frame counts that a network takes.

    Attributes:
        shortest: smallest frame count.
        longest: largest frame count; None where there is no limit.
        repeats: number of times that the network repeats a shorter sequence, by frame count.

    Example:
        >>> counts = FrameCounts(3, None, {1: 3, 2: 2})
        >>> counts.fit(np.zeros((2, 64, 44))).shape
        (4, 64, 44)
    """

    shortest: int = 1
    longest: int | None = None
    repeats: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def exactly(cls, count: int | None) -> FrameCounts:
        """Return a single frame count; None means any."""
        return cls() if count is None else cls(count, count)

    @property
    def fixed(self) -> int | None:
        """Frame count, if only one is taken; else None."""
        return self.shortest if self.shortest == self.longest else None

    def takes(self, count: int) -> bool:
        """Return whether the network takes a frame count without conversion."""
        return self.shortest <= count and (self.longest is None or count <= self.longest)

    def nearest(self, count: int) -> int:
        """Return the nearest frame count that the network takes without conversion."""
        count = max(self.shortest, count)
        return count if self.longest is None else min(self.longest, count)

    def fits(self, count: int) -> bool:
        """Return whether a sequence of this length can be converted to a frame count that is taken."""
        return count > 0 and (self.takes(count) or self.fixed is not None or count in self.repeats)

    def indices(self, count: int, name: str = "the sequence") -> NDArray[np.int64]:
        """Return the indices of a sequence's frames that the network gets, in order.

        For a single frame count, frames are repeated in a circle, or the first ones are taken. For other
        networks, a sequence that is too short is repeated as the network itself does.

        Args:
            count: frames of the sequence.
            name: name of the sequence in errors.

        Raises:
            DataError: the exported file does not compute the same as the network at this length.
        """
        if not self.fits(count):
            raise DataError(
                f"{name}: {count} frames; the network is captured for {self}; at other lengths it fails or "
                "computes something else. Cut or split the sequence"
            )
        length = count * self.repeats.get(count, 1) if self.fixed is None else self.fixed
        return np.arange(length) % count

    def fit(self, frames: NDArray[Any], name: str = "the sequence") -> NDArray[Any]:
        """Return a sequence ``[s, ...]`` with the frames of `indices`."""
        count = len(frames)
        return frames if self.takes(count) else frames[self.indices(count, name)]

    def changed_note(self, lengths: Sequence[int]) -> str | None:
        """Return a note if test sequences are repeated or cut to a single frame count; else None.

        Args:
            lengths: frame counts of the test sequences.
        """
        changed = sum(length != self.fixed for length in lengths)
        if self.fixed is None or not changed:
            return None
        return (
            f"{changed} of {len(lengths)} test sequences are repeated or cut: the network takes {self}. "
            "Shorter sequences are repeated in a circle, and of longer ones the first frames are taken"
        )

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"{self.fixed} frames only"
        if self.longest is not None:
            text = f"{self.shortest} to {self.longest} frames"
        else:
            text = f"{self.shortest} frames or more" if self.shortest > 1 else "any number of frames"
        repeated = ", ".join(str(count) for count in sorted(self.repeats))
        return f"{text} (sequences of {repeated} are repeated, as the network does)" if repeated else text

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        repeats = {str(count): times for count, times in sorted(self.repeats.items())}
        return {"shortest": self.shortest, "longest": self.longest, "repeats": repeats}


ANY_FRAME_COUNT = FrameCounts()


def parse_frame_counts(described: Mapping[str, Any] | None, fixed: int | None) -> FrameCounts:
    """Return the frame counts that a file's metadata describe.

    Args:
        described: result of `FrameCounts.describe`; None in files of older versions.
        fixed: frame count in the shape of the file's input; None if it is free.
    """
    if fixed is not None or described is None:
        return FrameCounts.exactly(fixed)
    repeats = {int(count): times for count, times in described.get("repeats", {}).items()}
    return FrameCounts(described["shortest"], described.get("longest"), repeats)
