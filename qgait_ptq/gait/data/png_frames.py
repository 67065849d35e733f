"""Reading of a folder of PNG frames, ``[s, h, w]`` uint8."""

from __future__ import annotations

import io
import os
import struct
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.limits import (
    PNG_FILE_BYTES,
    PNG_FRAMES,
    PNG_PIXELS,
    SEQUENCE_BYTES,
    error_text,
)
from qgait_ptq.gait.data.names import is_broken, is_folder, is_ignored, natural_key, suffix_of
from qgait_ptq.system.reading import read_bytes

FRAME_SUFFIX = ".png"
NOISE = 0.01  # largest share of a frame that is no silhouette
BYTE = np.iinfo(np.uint8).max
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def frame_files(folder: Path) -> list[Path]:
    """Return the png frames of a folder in natural order; of more than `PNG_FRAMES`, one more.

    Folders and broken links are left out; `find_sequences` notes them.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        frames = (entry.name for entry in entries if _is_frame(entry))
        names = sorted(islice(frames, PNG_FRAMES + 1), key=natural_key)
    return [folder / name for name in names]


def _is_frame(entry: os.DirEntry[str]) -> bool:
    has_name = suffix_of(entry.name) == FRAME_SUFFIX and not is_ignored(entry.name)
    return has_name and not is_folder(entry) and not is_broken(entry)


class _FrameStack:
    """Frames of a folder as silhouettes: their transparency if one of them has a shape in it, else colours.

    Colours and transparency are not both kept, so that memory stays within the limits of one sequence.
    """

    def __init__(self) -> None:
        self.frames: list[NDArray[Any]] = []
        self.levels: list[int] = []  # transparency of each frame before one of them has a shape in it
        self.has_shape = self.has_opaque = False

    def add(self, colours: NDArray[Any], alpha: NDArray[np.uint8] | None) -> None:
        """Add one frame.

        Args:
            colours: grey values ``[h, w]``, uint8 or uint16.
            alpha: transparency ``[h, w]``; None for an image without.

        Raises:
            ValueError: transparency holds the silhouettes, and a frame has none.
        """
        self.has_opaque |= alpha is None
        is_shape = alpha is not None and bool((alpha != alpha[0, 0]).any())
        if self.has_opaque and (self.has_shape or is_shape):
            raise ValueError(
                "some frames hold the silhouette in transparency and others have no transparency; "
                "save all frames in the same way"
            )
        if is_shape and not self.has_shape:
            self.has_shape = True
            pairs = zip(self.frames, self.levels, strict=True)
            self.frames = [np.full_like(frame, level) for frame, level in pairs]
        if alpha is not None and not self.has_shape:
            self.levels.append(int(alpha[0, 0]))
        self.frames.append(alpha if self.has_shape and alpha is not None else colours)


def read_png_folder(folder: Path, masks: bool = True) -> NDArray[np.uint8]:
    """Return the frames of a folder, ``[s, h, w]``, in natural order; none for a folder without frames.

    Args:
        folder: folder of frames.
        masks: whether the frames are silhouettes, and not other values such as label maps.

    Raises:
        DataError: a frame cannot be read, sizes differ, silhouettes are stored in different ways, or the
            sequence exceeds the limits.
        OSError: the folder cannot be read.
    """
    files = frame_files(folder)
    if len(files) > PNG_FRAMES:
        raise DataError(
            f"{folder}: more than {PNG_FRAMES} PNG frames, which is the limit; split the sequence"
        )
    stack = _FrameStack()
    read = pixels = 0
    for file in files:
        data = read_bytes(file, PNG_FILE_BYTES, "the frame", DataError)
        try:
            width, height = _png_size(data)
            read, pixels = read + len(data), pixels + width * height
            if max(read, pixels) > SEQUENCE_BYTES:
                raise ValueError(f"the frames exceed {SEQUENCE_BYTES} bytes; split the sequence")
            stack.add(*_decode_png(data, (width, height)))
        except Exception as error:  # a hostile image can make Pillow raise any error
            raise DataError(f"{file}: cannot be read as a PNG frame ({error_text(error)})") from None
    frames = stack.frames
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise DataError(f"{folder}: frames of different sizes {sorted(shapes)[:3]}; resize them to one")
    if masks:
        _check_alike(files, frames)
    return np.stack(_in_bytes(frames, masks)) if frames else np.zeros((0, 0, 0), np.uint8)


def _check_alike(files: list[Path], frames: list[NDArray[Any]]) -> None:
    """Check that no frame would become black, because its largest value is far below that of the others.

    A few such values are noise in an empty frame.

    Raises:
        DataError: a frame is a mask of {0, 1} and others are not, or its values need fewer bits.
    """
    largest = [int(frame.max()) for frame in frames]
    most = max(largest, default=0)
    for file, frame, own in zip(files, frames, largest, strict=True):
        needs_fewer = frame.dtype == np.uint16 and own <= BYTE < most
        is_shape = np.count_nonzero(frame) > NOISE * frame.size
        if is_shape and own != most and (own == 1 or needs_fewer):
            raise DataError(
                f"{file}: its largest value is {own}, but that of the sequence is {most}; save all frames in "
                "the same way, or the silhouette of this frame is lost"
            )


def _in_bytes(frames: list[NDArray[Any]], masks: bool) -> list[NDArray[np.uint8]]:
    """Return frames of 16 bits as bytes: the upper ones, unless masks of {0, 1} or 0..255 are stored so.

    Masks of 0 and one larger value become {0, 255}.
    """
    wide = [frame for frame in frames if frame.dtype == np.uint16]
    largest = max((int(frame.max()) for frame in wide), default=0)
    if masks and largest > BYTE and all(bool(((f == 0) | (f == largest)).all()) for f in wide):
        return [(frame > 0) * np.uint8(BYTE) if frame.dtype == np.uint16 else frame for frame in frames]
    shift = 8 if largest > BYTE else 0
    return [(frame >> shift).astype(np.uint8) if frame.dtype == np.uint16 else frame for frame in frames]


def _png_size(data: bytes) -> tuple[int, int]:
    """Return the width and height that the first chunk of a PNG image declares."""
    if len(data) < 24 or data[:8] != PNG_SIGNATURE or data[12:16] != b"IHDR":
        raise ValueError("not a PNG image")
    width, height = struct.unpack(">II", data[16:24])
    if width * height > PNG_PIXELS:
        raise ValueError(f"an image of {width}×{height} pixels; the limit is {PNG_PIXELS} pixels")
    return width, height


def _decode_png(data: bytes, size: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Return colours as grey ``[h, w]``, and transparency ``[h, w]``, or None for an image without."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.size != size:  # a later chunk declares another size
            raise ValueError(f"an image of two sizes, {size} and {image.size}")
        if getattr(image, "is_animated", False):
            raise ValueError("an animation; save each of its frames as a file")
        is_opaque = image.mode not in ("RGBA", "LA") and "transparency" not in image.info
        alpha = None if is_opaque else np.asarray(image.convert("RGBA").getchannel("A"))
        if image.mode.startswith("I"):  # grey values of 16 bits, which Pillow would clip to 255
            return np.asarray(image).astype(np.uint16), alpha
        return np.asarray(image.convert("L")), alpha
