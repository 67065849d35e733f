"""Networks of several inputs: how the frames of each lie side by side in one array.

Between the data and the file, everything sees one sequence ``[s, F]`` of float32. A network of several inputs
takes its parts out of it (`qgait_ptq.graph.frame_parts`), and its file has an input for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTE = np.float32(255)
LARGEST_INTEGER = 2**24  # up to which float32 holds every integer


class PartKind(StrEnum):
    """What an input holds, and so how it is given to the network."""

    SILHOUETTES = "silhouettes"  # stored as uint8, given as float32 in [0, 1]
    VALUES = "values"  # float32, as they are
    INTEGERS = "integers"  # int64, as they are


DTYPES: Mapping[PartKind, type[np.generic]] = {
    PartKind.SILHOUETTES: np.uint8,
    PartKind.VALUES: np.float32,
    PartKind.INTEGERS: np.int64,
}


@dataclass(frozen=True)
class FramePart:
    """One input of a network.

    Attributes:
        name: of the file's input.
        shape: of one frame of it.
        kind: what it holds.
    """

    name: str
    shape: tuple[int, ...]
    kind: PartKind

    @property
    def size(self) -> int:
        """Numbers of one frame."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FrameLayout:
    """The inputs of a network, in the order in which it takes them.

    Example:
        >>> layout = layout_of({"silhouettes": np.zeros((5, 4, 3), np.uint8), "pose": np.ones((5, 2))})
        >>> layout.size, layout.pack([np.full((5, 4, 3), 255, np.uint8), np.ones((5, 2))]).shape
        (14, (5, 14))
    """

    parts: tuple[FramePart, ...]

    @property
    def size(self) -> int:
        """Numbers of one frame of all inputs, F."""
        return sum(part.size for part in self.parts)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each part begins."""
        return tuple(accumulate((part.size for part in self.parts[:-1]), initial=0))

    @property
    def has_silhouettes(self) -> bool:
        """Whether an input holds silhouettes."""
        return any(part.kind is PartKind.SILHOUETTES for part in self.parts)

    def pack(self, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """One array for each part, ``[s, ...]`` as stored, side by side: ``[s, F]``."""
        flat = [
            array.reshape(len(array), -1).astype(np.float32)
            / (BYTE if part.kind is PartKind.SILHOUETTES else np.float32(1))
            for part, array in zip(self.parts, arrays, strict=True)
        ]
        return np.concatenate(flat, axis=1)

    def unpack(self, packed: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Undo `pack`; arrays by the names of the parts."""
        found = {}
        for part, start in zip(self.parts, self.starts, strict=True):
            values = packed[:, start : start + part.size].reshape(len(packed), *part.shape)
            if part.kind is PartKind.SILHOUETTES:
                values = np.rint(values * BYTE)
            found[part.name] = values.astype(DTYPES[part.kind])
        return found

    def __str__(self) -> str:
        """For people: ``silhouettes 64×44, pose 85``."""
        return ", ".join(f"{part.name} {'×'.join(map(str, part.shape)) or 1}" for part in self.parts)

    def describe(self) -> list[dict[str, Any]]:
        """For ``report.json`` and the file; `parse_layout` reads it."""
        return [
            {"name": part.name, "shape": list(part.shape), "kind": part.kind.value} for part in self.parts
        ]


def layout_of(arrays: Mapping[str, NDArray[Any]]) -> FrameLayout:
    """The layout of checked arrays ``[s, ...]``: their types say what they hold."""
    return FrameLayout(
        tuple(FramePart(name, array.shape[1:], _kind(array)) for name, array in arrays.items())
    )


def parse_layout(described: Sequence[Mapping[str, Any]]) -> FrameLayout:
    """Undo `FrameLayout.describe`."""
    return FrameLayout(
        tuple(FramePart(part["name"], tuple(part["shape"]), PartKind(part["kind"])) for part in described)
    )


def _kind(array: NDArray[Any]) -> PartKind:
    for kind, dtype in DTYPES.items():
        if array.dtype == dtype:
            return kind
    return PartKind.VALUES
