"""One silhouette sequence on disk: pkl, npy, npz or a folder of png, always ``[s, h, w]`` uint8."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError, MissingExtraError
from qgait_ptq.gait.pickles import load_array_pickle

ARRAY_SUFFIXES = (".pkl", ".npy", ".npz")
FOREGROUND = 255


def read_sequence(path: Path) -> NDArray[np.uint8]:
    """Read one sequence.

    Args:
        path: an array file, or a folder of png frames that are read in the order of their names.

    Returns:
        Silhouettes ``[s, h, w]`` in 0..255; square ones lose the empty columns, see `cut_width`.

    Raises:
        DataError: the file cannot be read, is empty, or does not hold silhouettes.
    """
    try:
        array = _read_array(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as silhouettes ({error})") from None
    return cut_width(check_silhouettes(array, str(path)))


def check_silhouettes(array: Any, where: str) -> NDArray[np.uint8]:
    """Check that an array holds silhouettes, and bring them to 0..255.

    Args:
        array: bool, or uint8 in {0, 1} or 0..255 (grey edges are kept), ``[s, h, w]``; or maps of several
            channels, such as skeleton maps or projected depth, ``[s, c, h, w]``.
        where: named in errors.

    Raises:
        DataError: another type, another number of axes, or no frame.
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
        raise DataError(f"{where}: silhouettes of type {array.dtype}; store them as uint8, 0 and 255")
    # {0, 1} masks are told apart from 0..255 by their largest value: a person is never all dark grey.
    return array * np.uint8(FOREGROUND) if array.max() <= 1 else array


def shape_text(frame_shape: tuple[int, ...]) -> str:
    """For people: ``64×44``."""
    return "×".join(map(str, frame_shape))


def cut_width(silhouettes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut the columns that no body reaches from square silhouettes: 64×64 becomes 64×44, 128×128 88.

    OpenGait's cut: ``10 * (w // 64)`` columns on each side.
    """
    height, width = silhouettes.shape[-2:]
    columns = 10 * (width // 64)
    return silhouettes[..., columns : width - columns] if height == width and columns else silhouettes


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
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("reading png silhouettes", "report") from None
    frames = []
    for file in sorted(folder.glob("*.png")):
        with Image.open(file) as image:
            frames.append(np.asarray(image.convert("L")))
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise DataError(f"{folder}: frames of different sizes {sorted(shapes)[:3]}; resize them to one")
    return np.stack(frames) if frames else np.zeros((0, 0, 0), np.uint8)
