"""Reading of one sequence: pkl, npy, npz or a folder of PNG frames, ``[s, h, w]`` uint8."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError, DataError, first_line
from qgait_ptq.gait.data.limits import (
    ARRAY_FILE_BYTES,
    SEQUENCE_BYTES,
    ZIP_ENTRIES,
    build_array,
    error_text,
    number_type,
)
from qgait_ptq.gait.data.names import suffix_of
from qgait_ptq.gait.data.pickles import load_array_pickle
from qgait_ptq.gait.data.png_frames import read_png_folder
from qgait_ptq.system.integers import check_integer
from qgait_ptq.system.reading import read_bytes, shown

ARRAY_SUFFIXES = (".pkl", ".npy", ".npz")
FOREGROUND = 255


@dataclass(frozen=True)
class Reading:
    """Settings of reading sequences.

    Attributes:
        cut_columns: columns to cut from each side of a frame; None for the empty columns of square
            silhouettes, see `cut_width`.
        longest: largest number of frames, from the beginning; None for all.
        modalities: indices of the array files in a sequence folder, sorted by name.
        raw: whether arrays are unscaled values, such as poses. Columns are then cut only if `cut_columns` is
            set.
    """

    cut_columns: int | None = None
    longest: int | None = None
    modalities: tuple[int, ...] = (0,)
    raw: bool = False

    def __post_init__(self) -> None:
        """Check the settings, and store integers of numpy as those of Python.

        Raises:
            ConfigError: a setting is not an integer or is out of range, or `modalities` names no file or a
                file twice.
        """
        for name, least in (("cut_columns", 0), ("longest", 1)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_integer(value, name, least))
        if not isinstance(self.modalities, tuple | list) or not self.modalities:
            raise ConfigError(
                f"modalities is {shown(self.modalities)}; it must be a tuple of at least one "
                "index, such as (0,)"
            )
        indices = tuple(check_integer(index, "an index in modalities", 0) for index in self.modalities)
        object.__setattr__(self, "modalities", indices)
        if len(set(self.modalities)) < len(self.modalities):
            raise ConfigError(f"modalities {shown(self.modalities)} names a file twice; name each once")


DEFAULT_READING = Reading()


def read_sequence(path: Path, reading: Reading = DEFAULT_READING) -> NDArray[Any]:
    """Read one sequence.

    Args:
        path: path of an array file, or of a folder of PNG frames, which are in natural order.
        reading: settings of reading.

    Returns:
        Silhouettes ``[s, h, w]`` uint8 in 0..255; raw values as float32.

    Raises:
        DataError: the file cannot be read, is empty, or has no silhouettes.
    """
    array = read_values(path) if reading.raw else read_array(path)
    check = check_values if reading.raw else check_silhouettes
    return cut_sequence(check(array, str(path)), reading, str(path))[: reading.longest]


def read_array(path: Path, masks: bool = True) -> Any:
    """Return the content of a file or a folder of PNG frames, within limits, with values unchecked.

    Args:
        path: path of the file or folder.
        masks: whether PNG frames are silhouettes; see `read_png_folder`.

    Raises:
        DataError: the file or the folder cannot be read.
    """
    try:
        if path.is_dir():
            return read_png_folder(path, masks)
    except (OSError, ValueError) as error:  # a path with a NUL character can be a ValueError
        raise DataError(f"{path}: cannot be read ({error_text(error)})") from None
    suffix = suffix_of(path.name)
    if suffix == ".pkl":
        return load_array_pickle(path)
    if suffix not in PARSERS:
        raise DataError(
            f"{path}: unknown kind of file; use {', '.join(ARRAY_SUFFIXES)} or a folder of PNG frames"
        )
    data = read_bytes(path, ARRAY_FILE_BYTES, "the sequence", DataError)
    try:
        return PARSERS[suffix](data)
    except Exception as error:  # a hostile file can make the parsers raise any error
        raise DataError(f"{path}: cannot be read as a sequence ({error_text(error)})") from None


def read_values(path: Path) -> NDArray[Any]:
    """Return an array, or nested lists of arrays or numbers as one. `read_array` limits the size of lists.

    Raises:
        DataError: the file cannot be read, or its lists do not form an array.
    """
    content = read_array(path, masks=False)
    if not isinstance(content, np.ndarray | list | tuple):
        raise DataError(f"{path}: found {type(content).__name__}, expected an array of numbers [s, ...]")
    try:
        return np.asarray(content)
    except Exception as error:  # lists of different lengths, or a hostile file
        raise DataError(f"{path}: its lists do not form an array ({error_text(error)})") from None


def cut_sequence(frames: NDArray[Any], reading: Reading, where: str) -> NDArray[Any]:
    """Cut columns from checked frames.

    Raises:
        DataError: the frames are not wide enough.
    """
    if reading.cut_columns is not None and frames.shape[-1] <= 2 * reading.cut_columns:
        raise DataError(
            f"{where}: frames of {shape_text(frames.shape[1:])}; {reading.cut_columns} columns on each "
            "side cannot be cut from them"
        )
    return cut_width(frames, 0 if reading.raw and reading.cut_columns is None else reading.cut_columns)


def as_array(sequence: Any, where: str) -> NDArray[Any]:
    """Return an array, a list of frames or a tensor of torch as an array.

    Args:
        sequence: array, nested lists, or tensor.
        where: name of the sequence in errors.

    Raises:
        DataError: frames have different sizes, or a tensor is on a GPU or requires grad.
    """
    try:
        return np.asarray(sequence)
    except (ValueError, TypeError, RuntimeError) as error:  # torch raises the last two
        raise DataError(f"{where}: not an array [s, ...] ({first_line(error)})") from None


def check_silhouettes(array: Any, where: str) -> NDArray[np.uint8]:
    """Check that an array holds silhouettes, and bring them to 0..255.

    Args:
        array: silhouettes ``[s, h, w]``, bool, or uint8 in {0, 1} or 0..255 (grey edges are kept). Or maps of
            several channels ``[s, c, h, w]``, such as skeleton maps or projected depth.
        where: name of the sequence in errors.

    Raises:
        DataError: the type or the axes are wrong, there is no frame, or the largest value is 2 to 127.
    """
    if not isinstance(array, np.ndarray):
        raise DataError(f"{where}: found a {type(array).__name__}, expected an array [s, h, w]")
    if array.ndim not in (3, 4):
        raise DataError(
            f"{where}: found the shape {list(array.shape)}, expected [s, h, w], or [s, c, h, w] for maps"
        )
    if 0 in array.shape:
        raise DataError(f"{where}: an empty sequence, shape {list(array.shape)}; remove it from the data set")
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(FOREGROUND)
    if array.dtype != np.uint8:
        raise DataError(
            f"{where}: silhouettes of type {array.dtype}; store them as uint8, 0 and 255. For other data, "
            "such as poses, use --raw, or in Python GaitDataset.from_pairs(pairs, raw=True)"
        )
    # The largest value distinguishes {0, 1} masks from 0..255: a person is never completely dark grey.
    largest = int(array.max())
    if array.ndim == 3 and 1 < largest <= FOREGROUND // 2:
        raise DataError(
            f"{where}: values of 0 to {largest} are not silhouettes, which have 0 and 1, or 0 to 255. For "
            "other data, such as label maps, use --raw, or in Python GaitDataset.from_pairs(pairs, raw=True)"
        )
    return array * np.uint8(FOREGROUND) if largest <= 1 else array


def check_values(array: Any, where: str) -> NDArray[np.float32]:
    """Check that an array holds numbers for each frame, such as poses ``[s, joints, 3]``.

    Args:
        array: array ``[s, ...]`` of any real type.
        where: name of the sequence in errors.

    Raises:
        DataError: the values are not numbers or not finite, or there is no frame.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{where}: found {kind}, expected an array of numbers [s, ...]")
    if array.ndim < 2 or 0 in array.shape:
        raise DataError(f"{where}: found the shape {list(array.shape)}, expected frames [s, ...]")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{where}: NaN or infinite values")
    return values


def shape_text(frame_shape: tuple[int, ...]) -> str:
    """Return a shape as text, such as ``64×44``."""
    return "×".join(map(str, frame_shape))


def cut_width(silhouettes: NDArray[Any], columns: int | None = None) -> NDArray[Any]:
    """Cut columns from both sides of each frame.

    Args:
        silhouettes: frames ``[s, h, w]`` or ``[s, c, h, w]``.
        columns: columns to cut from each side. None: ``10 * (w // 64)`` empty columns of square frames, as in
            OpenGait. 64×64 becomes 64×44, 128×128 becomes 128×88.
    """
    height, width = silhouettes.shape[-2:]
    if columns is None:
        columns = 10 * (width // 64) if height == width else 0
    return silhouettes[..., columns : width - columns] if columns else silhouettes


def _parse_npy(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    version = npy_format.read_magic(file)
    if version not in NPY_HEADERS:
        raise ValueError(f"npy version {version[0]}.{version[1]}, which plain arrays do not need")
    shape, is_fortran, dtype = NPY_HEADERS[version](file)
    values = memoryview(data)[file.tell() :]
    size = math.prod(shape) * dtype.itemsize  # numpy also ignores bytes that follow
    return build_array(values[:size], number_type(dtype.str), shape, "F" if is_fortran else "C")


def _parse_npz(data: bytes) -> NDArray[Any]:
    # zipfile makes an object for each entry. The number of signatures is a bound on their number.
    if data.count(b"PK\x01\x02") > ZIP_ENTRIES:
        raise ValueError(f"an archive of more than {ZIP_ENTRIES} entries, expected one array")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = [member.filename.removesuffix(".npy")[:20] for member in members[:4]]
            raise ValueError(f"found {len(members)} arrays {names}, expected one")
        (member,) = members
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("a compression other than that of numpy; save it with np.savez_compressed")
        if member.file_size > ARRAY_FILE_BYTES:
            raise ValueError(f"an array of {member.file_size} bytes; the limit is {SEQUENCE_BYTES}")
        with archive.open(member) as file:
            return _parse_npy(file.read(member.file_size))  # the argument limits decompression


NPY_HEADERS: Mapping[tuple[int, int], Callable[[io.BytesIO], tuple[Any, bool, np.dtype[Any]]]] = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
PARSERS: Mapping[str, Callable[[bytes], NDArray[Any]]] = {".npy": _parse_npy, ".npz": _parse_npz}
