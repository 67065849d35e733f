"""Layout of networks with several inputs, whose frames are concatenated into one array.

Between the data and the file, all inputs are one float32 sequence ``[s, F]``. The graph takes its inputs out
of it (`qgait_ptq.graph.frame_inputs`), and the file has one input for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTE = np.float32(255)
SCALAR = "scalar"  # shape of an input with one number per frame, in texts
LARGEST_INTEGER = 2**24  # largest range in which float32 represents every integer


class InputKind(StrEnum):
    """Kind of input, which determines how it is passed to the network."""

    SILHOUETTES = "silhouettes"  # stored as uint8, given as float32 in [0, 1]
    VALUES = "values"  # float32, as they are
    INTEGERS = "integers"  # int64, as they are


DTYPES: Mapping[InputKind, type[np.generic]] = {
    InputKind.SILHOUETTES: np.uint8,
    InputKind.VALUES: np.float32,
    InputKind.INTEGERS: np.int64,
}


@dataclass(frozen=True)
class FrameInput:
    """One input of a network.

    Attributes:
        name: name of the file's input.
        shape: shape of one frame.
        kind: kind of input.
        largest: largest integer that the network looks up in a table; None if there is no limit, or it is not
            known. The smallest is 0.
    """

    name: str
    shape: tuple[int, ...]
    kind: InputKind
    largest: int | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Number of values in one frame."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FrameLayout:
    """The inputs of a network, in order.

    Example:
        >>> layout = layout_of({"silhouettes": np.zeros((5, 4, 3), np.uint8), "pose": np.ones((5, 2))})
        >>> layout.size, layout.pack([np.full((5, 4, 3), 255, np.uint8), np.ones((5, 2))]).shape
        (14, (5, 14))
    """

    inputs: tuple[FrameInput, ...]

    @property
    def size(self) -> int:
        """Number of values in one frame of all inputs, F."""
        return sum(entry.size for entry in self.inputs)

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of the first value of each input in a frame."""
        return tuple(accumulate((entry.size for entry in self.inputs[:-1]), initial=0))

    @property
    def has_silhouettes(self) -> bool:
        """Return whether an input holds silhouettes."""
        return any(entry.kind is InputKind.SILHOUETTES for entry in self.inputs)

    def limited(self, largest: Mapping[str, int]) -> FrameLayout:
        """Return the layout with the largest integers of inputs, by name."""
        return FrameLayout(
            tuple(replace(entry, largest=largest.get(entry.name, entry.largest)) for entry in self.inputs)
        )

    def pack(self, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Concatenate one stored array ``[s, ...]`` for each input to ``[s, F]``."""
        flat = [
            array.reshape(len(array), -1).astype(np.float32)
            / (BYTE if entry.kind is InputKind.SILHOUETTES else np.float32(1))
            for entry, array in zip(self.inputs, arrays, strict=True)
        ]
        return np.concatenate(flat, axis=1)

    def unpack(self, packed: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Undo `pack`, and return the arrays by input name."""
        arrays = {}
        for entry, start in zip(self.inputs, self.starts, strict=True):
            values = packed[:, start : start + entry.size].reshape(len(packed), *entry.shape)
            if entry.kind is InputKind.SILHOUETTES:
                values = np.rint(values * BYTE)
            arrays[entry.name] = values.astype(DTYPES[entry.kind])
        return arrays

    def __str__(self) -> str:
        """Return a text for people, such as ``silhouettes 64×44, pose 85``."""
        return ", ".join(f"{entry.name} {'×'.join(map(str, entry.shape)) or SCALAR}" for entry in self.inputs)

    def describe(self, largest: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Return the layout for ``report.json`` and the file; `parse_layout` reads it.

        Args:
            largest: largest integer that the network takes, by the name of the input.
        """
        limits = {name: {"largest": limit} for name, limit in (largest or {}).items()}
        return [
            {
                "name": entry.name,
                "shape": list(entry.shape),
                "kind": entry.kind.value,
                **limits.get(entry.name, {}),
            }
            for entry in self.inputs
        ]


def layout_of(arrays: Mapping[str, NDArray[Any]]) -> FrameLayout:
    """Return the layout of checked arrays ``[s, ...]``, whose types determine the kinds."""
    return FrameLayout(
        tuple(FrameInput(name, array.shape[1:], _kind(array)) for name, array in arrays.items())
    )


def parse_layout(described: Sequence[Mapping[str, Any]]) -> FrameLayout:
    """Undo `FrameLayout.describe`."""
    return FrameLayout(
        tuple(
            FrameInput(entry["name"], tuple(entry["shape"]), InputKind(entry["kind"])) for entry in described
        )
    )


def largest_of(described: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the largest integers in a described layout, by the name of the input; see `check_integers`."""
    return {entry["name"]: entry["largest"] for entry in described if entry.get("largest") is not None}


def _kind(array: NDArray[Any]) -> InputKind:
    for kind, dtype in DTYPES.items():
        if array.dtype == dtype:
            return kind
    return InputKind.VALUES
