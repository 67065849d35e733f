"""Normalisation of silhouettes as in gait code bases: full height, centred on the body's mass."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SMALLEST_PERSON = 8  # rows; fewer mean a failed segmentation
FOREGROUND = np.uint8(255)


def normalise_silhouettes(mask: NDArray[np.bool_], size: int = 64) -> NDArray[np.uint8]:
    """Crop each frame to the person's rows, scale it to `size` rows and centre the columns by mass.

    A frame in which no person is found repeats the frame before it.

    Args:
        mask: masks ``[frames, rows, columns]``.
        size: rows and columns of the result.

    Returns:
        Silhouettes in {0, 255}, ``[frames, size, size]``.
    """
    silhouettes = np.zeros((len(mask), size, size), np.uint8)
    occupied = np.asarray(mask.any(2))
    for index, frame in enumerate(mask):
        rows = np.flatnonzero(occupied[index])
        if len(rows) < SMALLEST_PERSON:
            if index:
                silhouettes[index] = silhouettes[index - 1]
            continue
        person = frame[rows[0] : rows[-1] + 1].astype(np.float32)
        scaled = _resize(person, size / len(person), size) > 0.5
        silhouettes[index] = _centre(scaled, size)
    return silhouettes


def _resize(image: NDArray[np.float32], scale: float, rows: int) -> NDArray[np.float32]:
    """Resize bilinearly to `rows` rows and a number of columns from the scale."""
    columns = max(2, round(image.shape[1] * scale))
    vertical = _interpolation(rows, image.shape[0], scale)
    horizontal = _interpolation(columns, image.shape[1], scale)
    return np.asarray(vertical @ image @ horizontal.T)


@lru_cache(maxsize=512)  # persons of one height need the same matrices
def _interpolation(size: int, source: int, scale: float) -> NDArray[np.float32]:
    """Return the matrix ``[size, source]`` that interpolates linearly between pixel centres."""
    position = np.clip((np.arange(size) + 0.5) / scale - 0.5, 0, source - 1)
    lower = np.minimum(np.floor(position).astype(int), max(source - 2, 0))
    fraction = (position - lower).astype(np.float32)
    matrix = np.zeros((size, source), np.float32)
    matrix[np.arange(size), lower] = 1 - fraction
    matrix[np.arange(size), np.minimum(lower + 1, source - 1)] += fraction
    return matrix


def _centre(frame: NDArray[np.bool_], size: int) -> NDArray[np.uint8]:
    """Cut or pad the columns so that half of the mass lies on each side of the middle."""
    mass = frame.sum(0).cumsum()
    left = int(np.searchsorted(mass, mass[-1] / 2)) - size // 2
    result = np.zeros((size, size), np.uint8)
    first, last = max(0, left), min(frame.shape[1], left + size)
    result[:, first - left : last - left] = frame[:, first:last] * FOREGROUND
    return result
