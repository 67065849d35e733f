"""The camera: its position, and the signed distance of every pixel to the body's outline."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.gait.walkers.body import Capsules

ROWS, COLUMNS = 84, 68  # size of the window that follows the walker
MARGIN = 8  # rows left free above and below
FAR_OUTSIDE = 99.0  # distance, in pixels, given to pixels that no capsule comes near

Array = NDArray[np.float64]
Pixels = NDArray[np.float32]
_COLUMNS, _ROWS = np.arange(COLUMNS, dtype=np.float32), np.arange(ROWS, dtype=np.float32)


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
    return rasterise(
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


def rasterise(
    start: Pixels,
    end: Pixels,
    start_radius: Pixels,
    end_radius: Pixels,
) -> Pixels:
    """Return the minimum over capsules of the signed distance ``[frames, ROWS, COLUMNS]``.

    Each capsule is drawn in its bounding box only, three pixels larger on each side.

    Args:
        start: starts of the axes in pixels, ``[frames, capsules, 2]``.
        end: ends of the axes, likewise.
        start_radius: radii at the starts, ``[frames, capsules]``.
        end_radius: radii at the ends, likewise.
    """
    frames = len(start)
    distance = np.full((frames, ROWS, COLUMNS), FAR_OUTSIDE, np.float32)
    memory = np.empty((3, distance.size), np.float32)  # reused, because new arrays cost more than the sums
    reach = np.maximum(start_radius.max(0), end_radius.max(0))[:, None] + 3
    first = np.clip(np.minimum(start, end).min(0) - reach, 0, [COLUMNS, ROWS]).astype(int)
    last = np.clip(np.maximum(start, end).max(0) + reach + 1, 0, [COLUMNS, ROWS]).astype(int)
    for index in np.flatnonzero((first < last).all(1)):
        (x0, y0), (x1, y1) = first[index], last[index]
        box, shape = (slice(x0, x1), slice(y0, y1)), (frames, y1 - y0, x1 - x0)
        along, across, other = (one[: math.prod(shape)].reshape(shape) for one in memory)
        ends = start[:, index], end[:, index], start_radius[:, index], end_radius[:, index]
        _capsule_distance(*ends, box, along, across, other)
        np.minimum(distance[:, y0:y1, x0:x1], across, out=distance[:, y0:y1, x0:x1])
    return distance


def _capsule_distance(
    a: Pixels,
    b: Pixels,
    ra: Pixels,
    rb: Pixels,
    box: tuple[slice, slice],
    along: Pixels,
    across: Pixels,
    other: Pixels,
) -> None:
    """Compute the signed distance to one capsule in each frame.

    Args:
        a: starts of the axis, ``[frames, 2]``.
        b: ends of the axis, ``[frames, 2]``.
        ra: radii at the start, ``[frames]``.
        rb: radii at the end, ``[frames]``.
        box: columns and rows.
        along: memory ``[frames, rows, columns]``.
        across: receives the distance ``[frames, rows, columns]``.
        other: memory ``[frames, rows, columns]``.
    """
    (x, y), (dx, dy) = box, (b - a).T[:, :, None, None]
    px = _COLUMNS[None, None, x] - a[:, None, None, 0]
    py = _ROWS[None, y, None] - a[:, None, None, 1]
    np.add(px * dx, py * dy, out=along)
    along /= dx * dx + dy * dy + 1e-4
    np.maximum(along, 0, out=along)
    np.minimum(along, 1, out=along)  # position on the axis, 0 at the start and 1 at the end
    np.multiply(along, dx, out=across)
    np.subtract(px, across, out=across)
    across *= across
    np.multiply(along, dy, out=other)
    np.subtract(py, other, out=other)
    other *= other
    across += other
    np.sqrt(across, out=across)
    along *= (rb - ra)[:, None, None]
    along += ra[:, None, None]
    across -= along
