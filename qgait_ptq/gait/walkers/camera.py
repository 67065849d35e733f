"""The camera: its position, and the signed distance of every pixel to the body's outline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.gait.walkers.body import Capsules

ROWS, COLUMNS = 84, 68  # size of the window that follows the walker
MARGIN = 8  # rows left free above and below
FAR_OUTSIDE = 99.0  # distance, in pixels, given to pixels that no capsule comes near

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A camera at breast height that looks at the middle of the walk.

    `view` is in degrees as in CASIA-B: 0 towards the camera, 90 from the side, 180 away from the camera.
    """

    view: float
    distance: float = 4.6
    height: float = 1.25


def sample_camera(view: float, rng: np.random.Generator) -> Camera:
    """Draw a camera near a nominal view: angle ± 2° (standard deviation), distance and height vary."""
    return Camera(view + rng.normal(0, 2.0), rng.uniform(4.0, 5.5), rng.uniform(1.0, 1.5))


def outline_distance(
    capsules: Capsules, walk_centre: Array, stature: float, camera: Camera
) -> NDArray[np.float32]:
    """Return the signed distance to the outline in pixels, negative inside: ``[frames, ROWS, COLUMNS]``.

    The projection is perspective. A capsule is the union of discs along the projected segment. A clip has one
    image scale, as with a real camera, and the window follows the walker.
    """
    start, start_radius = _project(capsules.start, capsules.start_radius, walk_centre, stature, camera)
    end, end_radius = _project(capsules.end, capsules.end_radius, walk_centre, stature, camera)
    top = np.maximum(start[..., 1] + start_radius, end[..., 1] + end_radius).max(1)
    bottom = np.minimum(start[..., 1] - start_radius, end[..., 1] - end_radius).min(1)
    scale = (ROWS - MARGIN) / np.percentile(top - bottom, 90)
    centre = np.stack([(start[..., 0].mean(1) + end[..., 0].mean(1)) / 2, (top + bottom) / 2], -1)[:, None]
    # The image's rows count downwards.
    flip, middle = np.array([scale, -scale]), np.array([COLUMNS / 2, ROWS / 2])
    return _rasterise(
        ((start - centre) * flip + middle).astype(np.float32),
        ((end - centre) * flip + middle).astype(np.float32),
        (start_radius * scale).astype(np.float32),
        (end_radius * scale).astype(np.float32),
    )


def _project(
    points: Array, radii: Array, walk_centre: Array, stature: float, camera: Camera
) -> tuple[Array, Array]:
    """Project to the image plane at distance 1: points ``[..., 2]`` and radii ``[...]``."""
    angle = np.deg2rad(camera.view)
    position = np.array(
        [
            walk_centre[0] + camera.distance * np.cos(angle),
            walk_centre[1] + camera.distance * np.sin(angle),
            camera.height,
        ]
    )
    look = np.array([walk_centre[0], walk_centre[1], 0.5 * stature]) - position
    look /= np.linalg.norm(look)
    right = np.cross(look, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    seen = (points - position) @ np.stack([right, np.cross(right, look), look], axis=1)
    return seen[..., :2] / seen[..., 2:], radii / seen[..., 2]


def _rasterise(
    start: NDArray[np.float32],
    end: NDArray[np.float32],
    start_radius: NDArray[np.float32],
    end_radius: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the minimum over capsules of the signed distance, each in its bounding box only."""
    frames, capsules = start_radius.shape
    distance = np.full((frames, ROWS, COLUMNS), FAR_OUTSIDE, np.float32)
    rows, columns = np.arange(ROWS, dtype=np.float32), np.arange(COLUMNS, dtype=np.float32)
    for index in range(capsules):
        a, b = start[:, index], end[:, index]
        ra, rb = start_radius[:, index, None, None], end_radius[:, index, None, None]
        reach = max(ra.max(), rb.max()) + 3
        low, high = np.minimum(a, b).min(0) - reach, np.maximum(a, b).max(0) + reach + 1
        x = slice(int(np.clip(low[0], 0, COLUMNS)), int(np.clip(high[0], 0, COLUMNS)))
        y = slice(int(np.clip(low[1], 0, ROWS)), int(np.clip(high[1], 0, ROWS)))
        if x.start >= x.stop or y.start >= y.stop:
            continue
        px = columns[None, None, x] - a[:, None, None, 0]
        py = rows[None, y, None] - a[:, None, None, 1]
        dx, dy = (b - a)[:, None, None, 0], (b - a)[:, None, None, 1]
        along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy + 1e-4), 0, 1)
        to_axis = np.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2)
        np.minimum(distance[:, y, x], to_axis - (ra + along * (rb - ra)), out=distance[:, y, x])
    return distance
