"""One silhouette sequence on disk: pkl, npy, npz or a folder of png, always ``[s, h, w]`` uint8."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.pickles import load_array_pickle

ARRAY_SUFFIXES = (".pkl", ".npy", ".npz")
FOREGROUND = 255


@dataclass(frozen=True)
class Reading:
    """How sequences are read.

    Attributes:
        cut_columns: cut from each side of a frame; None cuts what is empty in square frames of silhouettes,
            see `cut_width`.
        longest: frames to keep at most, from the beginning.
        modalities: which of several array files in a folder, in the order of their names.
        raw: take arrays as they are, such as poses; nothing is scaled, and columns are cut only if asked for.
    """

    cut_columns: int | None = None
    longest: int | None = None
    modalities: tuple[int, ...] = (0,)
    raw: bool = False


DEFAULT_READING = Reading()


def read_sequence(path: Path, reading: Reading = DEFAULT_READING) -> NDArray[Any]:
    """Read one sequence.

    Args:
        path: an array file, or a folder of png frames that are read in the order of their names.
        reading: how to cut it.

    Returns:
        Silhouettes ``[s, h, w]`` uint8 in 0..255; raw values as float32.

    Raises:
        DataError: the file cannot be read, is empty, or does not hold silhouettes.
    """
    array = read_array(path)
    check = check_values if reading.raw else check_silhouettes
    return cut_sequence(check(array, str(path)), reading, str(path))[: reading.longest]


def read_array(path: Path) -> Any:
    """What a file or a folder of png frames holds, unchecked.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return _read_array(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as silhouettes ({error})") from None


def cut_sequence(frames: NDArray[Any], reading: Reading, where: str) -> NDArray[Any]:
    """Cut the columns that a reading leaves out of checked frames.

    Raises:
        DataError: frames that are not wide enough.
    """
    if reading.cut_columns is not None and frames.shape[-1] <= 2 * reading.cut_columns:
        raise DataError(
            f"{where}: frames of {shape_text(frames.shape[1:])}; {reading.cut_columns} columns on each "
            "side cannot be cut from them"
        )
    return cut_width(frames, 0 if reading.raw and reading.cut_columns is None else reading.cut_columns)


def check_silhouettes(array: Any, where: str) -> NDArray[np.uint8]:
    """Check that an array holds silhouettes, and bring them to 0..255.

    Args:
        array: bool, or uint8 in {0, 1} or 0..255 (grey edges are kept), ``[s, h, w]``; or maps of several
            channels, such as skeleton maps or projected depth, ``[s, c, h, w]``.
        where: named in errors.

    Raises:
        DataError: another type, another number of axes, no frame, or silhouettes without a value above half.
    """
    if not isinstance(array, np.ndarray):
        raise DataError(f"{where}: holds a {type(array).__name__}, not an array [s, h, w]")
    if array.ndim not in (3, 4):
        raise DataError(f"{where}: shape {list(array.shape)}, silhouettes are [s, h, w], maps [s, c, h, w]")
    if 0 in array.shape:
        raise DataError(f"{where}: an empty sequence, shape {list(array.shape)}; remove it from the data set")
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(FOREGROUND)
    if array.dtype != np.uint8:
        raise DataError(
            f"{where}: silhouettes of type {array.dtype}; store them as uint8, 0 and 255 (what is no "
            "silhouette, such as a pose, is taken as it is with --raw, or raw=True in Python)"
        )
    # {0, 1} masks are told apart from 0..255 by their largest value: a person is never all dark grey.
    largest = int(array.max())
    if array.ndim == 3 and 1 < largest <= FOREGROUND // 2:
        raise DataError(
            f"{where}: values of 0 to {largest} are no silhouettes, which have 0 and 1, or 0 to 255 (what is "
            "no silhouette, such as a label map, is taken as it is with --raw, or raw=True in Python)"
        )
    return array * np.uint8(FOREGROUND) if largest <= 1 else array


def check_values(array: Any, where: str) -> NDArray[np.float32]:
    """Check that an array holds numbers for each frame, such as poses ``[s, joints, 3]``.

    Args:
        array: of any real type, ``[s, ...]``.
        where: named in errors.

    Raises:
        DataError: no numbers, no frame, or values that are not finite.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{where}: holds {kind}, not an array of numbers [s, ...]")
    if array.ndim < 2 or 0 in array.shape:
        raise DataError(f"{where}: shape {list(array.shape)}, expected frames [s, ...]")
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{where}: holds NaN or infinite values")
    return values


def shape_text(frame_shape: tuple[int, ...]) -> str:
    """For people: ``64×44``."""
    return "×".join(map(str, frame_shape))


def cut_width(silhouettes: NDArray[Any], columns: int | None = None) -> NDArray[Any]:
    """Cut columns from both sides of each frame.

    Args:
        silhouettes: ``[s, h, w]`` or ``[s, c, h, w]``.
        columns: of each side. None cuts those that no body reaches from square frames, as OpenGait does,
            ``10 * (w // 64)``: 64×64 becomes 64×44, 128×128 becomes 128×88.
    """
    height, width = silhouettes.shape[-2:]
    if columns is None:
        columns = 10 * (width // 64) if height == width else 0
    return silhouettes[..., columns : width - columns] if columns else silhouettes


def _read_array(path: Path) -> Any:
    if path.is_dir():
        return _read_png_folder(path)
    if path.suffix == ".pkl":
        return load_array_pickle(path)
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            if len(archive.files) != 1:
                raise DataError(
                    f"{path}: holds {len(archive.files)} arrays {archive.files[:4]}, expected one"
                )
            return archive[archive.files[0]]
    raise DataError(f"{path}: unknown kind of file; sequences are {', '.join(ARRAY_SUFFIXES)} or png folders")


def _read_png_folder(folder: Path) -> NDArray[Any]:
    from PIL import Image

    frames = []
    for file in sorted(folder.glob("*.png")):
        with Image.open(file) as image:
            frames.append(np.asarray(image.convert("L")))
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise DataError(f"{folder}: frames of different sizes {sorted(shapes)[:3]}; resize them to one")
    return np.stack(frames) if frames else np.zeros((0, 0, 0), np.uint8)
