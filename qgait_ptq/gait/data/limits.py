"""Limits of data files, and the steps that their readers share.

Data files are untrusted. A reader takes a bounded number of bytes from a regular file and parses them. It
builds an array only if the declared size is within the limits and agrees with the bytes of the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import first_line

MEBIBYTE = 2**20
SEQUENCE_BYTES = 128 * MEBIBYTE  # one sequence as stored; raw bytes as float32 take four times as much
ARRAY_FILE_BYTES = SEQUENCE_BYTES + MEBIBYTE  # one pkl, npy or npz file: a sequence and its headers
PNG_FILE_BYTES = 64 * MEBIBYTE  # one PNG file
PNG_PIXELS = 4 * MEBIBYTE  # one PNG frame
PNG_FRAMES = 65_536  # one folder
PARTITION_BYTES = 8 * MEBIBYTE  # one partition file
PICKLE_STEPS = 1_000_000  # opcodes of one pickle, and values of its lists with repetitions
PICKLE_DEPTH = 32  # depth of nested lists
ZIP_ENTRIES = 1_000  # entries of an npz file that are parsed; one array is read
DIMENSIONS = 32  # axes of an array

WIDEST = 8  # bytes of a float64, which arrays of several types in a list become

NUMBER_TYPES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"))
BYTE_ORDERS = "<>=|"


def number_type(name: str) -> np.dtype[Any]:
    """Return the dtype of a name such as ``u1`` or ``<f4``.

    Raises:
        ValueError: the name is not that of a bool, an integer of up to 64 bits, or a float of 16 to 64 bits.
    """
    if name.lstrip(BYTE_ORDERS) not in NUMBER_TYPES or len(name) > 3:
        raise ValueError(f"values of type {name[:20]!r}, expected bool, integers or floats of up to 64 bits")
    return np.dtype(name)


def build_array(
    data: bytes | bytearray | memoryview,
    dtype: np.dtype[Any],
    shape: Sequence[Any],
    order: Literal["C", "F"] = "C",
) -> NDArray[Any]:
    """Copy bytes into a new array in the byte order of this machine.

    Args:
        data: bytes of the values.
        dtype: dtype from `number_type`.
        shape: unchecked shape from a file.
        order: memory order, ``C`` or ``F`` (Fortran).

    Raises:
        ValueError: the shape is not valid, is too large, or needs another number of bytes.
    """
    if len(shape) > DIMENSIONS:
        raise ValueError(f"an array of {len(shape)} axes; the limit is {DIMENSIONS}")
    if any(type(length) is not int or not 0 <= length <= SEQUENCE_BYTES for length in shape):
        raise ValueError(f"an array whose shape is not valid or exceeds {_mebibytes(SEQUENCE_BYTES)}")
    size = math.prod(shape) * dtype.itemsize
    if size > SEQUENCE_BYTES:
        raise ValueError(
            f"an array {list(shape)} of {_mebibytes(size)}; the limit is {_mebibytes(SEQUENCE_BYTES)}"
        )
    if size != len(data):
        raise ValueError(
            f"an array {list(shape)} of {size} bytes, but the file holds {len(data)} bytes for it"
        )
    if dtype.kind == "b":  # a byte other than 0 and 1 is not a valid bool
        return (np.frombuffer(data, np.uint8) != 0).reshape(shape, order=order)
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("=")).reshape(shape, order=order)


def check_extent(content: Any) -> None:
    """Check the number of values and bytes in nested lists. Each repetition counts.

    Lists in a pickle can repeat a list by reference: 30 lists of two items each can stand for 2^30 arrays.

    Args:
        content: content of a pickle.

    Raises:
        ValueError: lists are too deep or too long, or an item is neither a number nor an array.
    """
    pending: list[tuple[Any, int]] = [(content, 0)]
    values = size = 0
    while pending:
        item, depth = pending.pop()
        if isinstance(item, np.ndarray):
            size += item.size * WIDEST if depth else item.nbytes
        elif isinstance(item, list | tuple | dict):
            inner = list(item.values()) if isinstance(item, dict) else item
            values += len(inner)
            if depth == PICKLE_DEPTH:
                raise ValueError(f"it holds lists more than {PICKLE_DEPTH} deep")
            if values > PICKLE_STEPS:
                raise ValueError(f"its lists hold more than {PICKLE_STEPS} values")
            pending.extend((value, depth + 1) for value in inner)
        elif item is not None and not isinstance(item, int | float):
            raise ValueError("it holds something other than arrays and numbers")
    if size > SEQUENCE_BYTES:
        raise ValueError(f"its lists of arrays amount to {size} bytes; the limit is {SEQUENCE_BYTES}")


def error_text(error: Exception) -> str:
    """Return a description of a parser's error in one line."""
    if isinstance(error, ValueError):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"


def _mebibytes(size: int) -> str:
    return f"{size / MEBIBYTE:.1f} MiB" if size < 2**60 else "more than 2^60 bytes"
