"""Sequences of several modalities, such as silhouettes and a body model."""

from __future__ import annotations

from collections.abc import Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.sequences import (
    Reading,
    as_array,
    check_silhouettes,
    check_values,
    cut_sequence,
    read_values,
)
from qgait_ptq.graph.frame_layout import LARGEST_INTEGER, FrameLayout, layout_of

INTEGERS = (np.int32, np.int64)
RESERVED = ("self", "embedding")  # names in the code of a graph, and of the output of a file


def modality_name(index: int) -> str:
    """Return the default name of an input of a network."""
    return f"modality_{index}"


def check_modalities(given: Mapping[str, Any], where: str, raw: bool = False) -> dict[str, NDArray[Any]]:
    """Check the arrays of one sequence.

    Args:
        given: arrays ``[s, ...]`` with the same s, by the names of inputs. uint8 and bool are silhouettes or
            maps, int32 and int64 are integers, all other types are values.
        where: name of the sequence in errors.
        raw: whether uint8 and bool are values too.

    Returns:
        The same arrays as uint8, int64 and float32.

    Raises:
        DataError: an array is not valid (see `check_silhouettes` and `check_values`), there is no array,
            lengths differ, a name is not an identifier, or float32 cannot represent an integer.
    """
    checked: dict[str, NDArray[Any]] = {}
    for name, array in given.items():
        at = f"{where}, {name}"
        if not (isinstance(name, str) and name.isidentifier()) or iskeyword(name) or name in RESERVED:
            raise DataError(f"{where}: an input is named {name!r}; use a name such as silhouettes")
        if not isinstance(array, np.ndarray):
            array = as_array(array, at)
        if array.dtype in (np.uint8, np.bool_) and not raw:
            checked[name] = check_silhouettes(array, at)
        else:
            checked[name] = _check_integers(array, at) if array.dtype in INTEGERS else check_values(array, at)
    lengths = {name: len(array) for name, array in checked.items()}
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: all inputs need the same number of frames; found {listed or 'no input'}")
    return checked


def read_modalities(sources: Mapping[str, Path], reading: Reading) -> dict[str, NDArray[Any]]:
    """Read the array files of one sequence, and cut silhouettes.

    Raises:
        DataError: a file is not valid; see `check_modalities` and `read_sequence`.
    """
    contents = {name: read_values(path) for name, path in sources.items()}
    where = ", ".join(map(str, sources.values()))
    arrays = check_modalities(contents, where, reading.raw)
    return {
        name: cut_sequence(array, reading, str(sources[name])) if array.dtype == np.uint8 else array
        for name, array in arrays.items()
    }


def check_layout(arrays: Mapping[str, NDArray[Any]], layout: FrameLayout, where: str) -> None:
    """Check that the arrays of one sequence match a layout.

    Raises:
        DataError: the arrays do not match.
    """
    require_layout(layout_of(arrays), layout, where)


def require_layout(own: FrameLayout, layout: FrameLayout, where: str) -> None:
    """Check that the layout of one sequence is the one that is needed.

    Raises:
        DataError: the layouts differ.
    """
    if own != layout:
        raise DataError(
            f"{where}: found {_kinds(own)}; the network and the other sequences have {_kinds(layout)}"
        )


def check_integers(arrays: Mapping[str, NDArray[Any]], largest: Mapping[str, int], where: str) -> None:
    """Check the integers that a network looks up in a table.

    Args:
        arrays: arrays of one sequence by the name of the input.
        largest: largest integer by the name of the input; the smallest is 0.
        where: name of the sequence in errors.

    Raises:
        DataError: an integer is not in the table.
    """
    for name, limit in largest.items():
        values = arrays[name]
        wrong = values[(values < 0) | (values > limit)]
        if wrong.size:
            raise DataError(
                f"{where}, {name}: found {wrong[0]}; the network takes integers from 0 to {limit} there"
            )


def check_packed(packed: NDArray[np.float32], layout: FrameLayout, where: str) -> None:
    """Check the integers of joined frames ``[s, F]``; see `check_integers`.

    Raises:
        DataError: an integer is not in the network's table.
    """
    for entry, start in zip(layout.inputs, layout.starts, strict=True):
        if entry.largest is not None:
            values = packed[:, start : start + entry.size].astype(np.int64)
            check_integers({entry.name: values}, {entry.name: entry.largest}, where)


def read_packed(sources: Mapping[str, Path], reading: Reading, layout: FrameLayout) -> NDArray[np.float32]:
    """Read the array files of one sequence, and join them as ``[s, F]`` float32."""
    arrays = read_modalities(sources, reading)
    check_layout(arrays, layout, ", ".join(map(str, sources.values())))
    return layout.pack(list(arrays.values()))[: reading.longest]


def as_modalities(sequence: Any) -> Mapping[str, Any] | None:
    """Return the arrays of a sequence by their names; None if the sequence is one array.

    A tuple or a dictionary has one array for each input. A list has frames.
    """
    if isinstance(sequence, Mapping):
        return sequence
    if isinstance(sequence, tuple):
        return {modality_name(index): array for index, array in enumerate(sequence)}
    return None


def _check_integers(array: NDArray[Any], where: str) -> NDArray[np.int64]:
    if array.ndim < 1 or 0 in array.shape:
        raise DataError(f"{where}: found the shape {list(array.shape)}, expected frames [s, ...]")
    if max(int(array.max()), -int(array.min())) > LARGEST_INTEGER:
        raise DataError(f"{where}: integers beyond ±{LARGEST_INTEGER}, which float32 cannot represent")
    return array.astype(np.int64)


def _kinds(layout: FrameLayout) -> str:
    return f"{layout} ({', '.join(entry.kind for entry in layout.inputs)})"
