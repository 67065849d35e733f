"""Errors of a person segmenter: ragged outlines, holes, persistent weak spots and missing feet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def segment(distance: NDArray[np.float32], rng: np.random.Generator, noise: float) -> Mask:
    """Convert signed outline distances to masks with the errors of a segmenter.

    Args:
        distance: signed distance in pixels, negative inside, ``[frames, rows, columns]``.
        rng: generator of the errors.
        noise: 0 gives the perfect outline, 1 the errors of a mediocre segmenter.

    Returns:
        Masks ``[frames, rows, columns]``.
    """
    if noise <= 0:
        return distance < 0
    frames = len(distance)
    bias = rng.normal(0, 0.25)
    ragged = 0.30 * _random_field(frames, 3, distance.shape[1:], rng)
    lasting = 0.30 * _random_field(1, 5, distance.shape[1:], rng)
    mask = distance + noise * (ragged + lasting + bias) < 0
    _lose_blobs(mask, rng, noise)
    _lose_weak_spot(mask, rng, noise)
    _lose_feet(mask, rng, noise)
    return mask


def _random_field(
    frames: int, cell: int, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return standard normal noise that is constant over cells of `cell` pixels."""
    coarse = rng.standard_normal((frames, shape[0] // cell + 2, shape[1] // cell + 2)).astype(np.float32)
    return np.repeat(np.repeat(coarse, cell, 1), cell, 2)[:, : shape[0], : shape[1]]


def _ellipse(shape: tuple[int, ...], row: float, column: float, radii: NDArray[np.float64]) -> Mask:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(((rows - row) / radii[0]) ** 2 + ((columns - column) / radii[1]) ** 2 < 1)


def _lose_blobs(mask: Mask, rng: np.random.Generator, noise: float) -> None:
    """Remove, or rarely add, one or two blobs in some frames."""
    _, height, width = mask.shape
    for frame in np.flatnonzero(rng.random(len(mask)) < 0.22 * noise):
        for _ in range(rng.integers(1, 3)):
            row, column = rng.uniform(0, height), width / 2 + rng.normal(0, 0.14 * width)
            blob = _ellipse(mask.shape[1:], row, column, rng.uniform(1.5, 6.5, 2))
            mask[frame][blob] = rng.random() < 0.18


def _lose_weak_spot(mask: Mask, rng: np.random.Generator, noise: float) -> None:
    """Remove a piece of clothing in most frames of some clips, as if it looked like the background."""
    if rng.random() >= 0.25 * noise:
        return
    _, height, width = mask.shape
    row, column = rng.uniform(0.2 * height, 0.9 * height), width / 2 + rng.normal(0, 0.1 * width)
    radii = rng.uniform(2, 5, 2)
    for frame in np.flatnonzero(rng.random(len(mask)) < 0.6):
        shift = rng.normal(0, 1.2, 2)
        mask[frame][_ellipse(mask.shape[1:], row + shift[0], column + shift[1], radii)] = False


def _lose_feet(mask: Mask, rng: np.random.Generator, noise: float) -> None:
    """Remove the lowest rows in some frames of some clips, as over a reflecting floor."""
    if rng.random() >= 0.15 * noise:
        return
    count = int(rng.integers(1, 4))
    for frame in np.flatnonzero(rng.random(len(mask)) < 0.4):
        rows = np.flatnonzero(mask[frame].any(1))
        if len(rows):
            mask[frame, rows[-1] - count + 1 :] = False
