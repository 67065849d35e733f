"""A picture of walkers, so that a person can look at them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError, MissingExtraError
from qgait_ptq.gait.sequences import cut_width
from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.population import WalkerSettings, render_identity

SHOWN_VIEWS = (0, 54, 90)  # degrees
SHOWN_FRAMES = (0, 5, 10, 15)
MOST_WALKERS = 12
LINE, PAPER = 1, np.uint8(90)  # width and grey of the lines between frames


def draw_contact_sheet(
    identities: Sequence[int], settings: WalkerSettings | None = None
) -> NDArray[np.uint8]:
    """One row a walker: nm, bg and cl, each from three views with four frames.

    Args:
        identities: at most the first twelve are drawn.
        settings: of the population.

    Returns:
        A grey image ``[rows, columns]``.
    """
    trials = tuple((condition, 1) for condition in Condition)
    rows = []
    for identity in identities[:MOST_WALKERS]:
        frames: list[NDArray[np.uint8]] = []
        for label, silhouettes in render_identity(identity, settings or WalkerSettings(), trials):
            if label.view in SHOWN_VIEWS:
                frames.extend(cut_width(silhouettes)[list(SHOWN_FRAMES)])
        framed = [np.pad(frame, ((0, LINE), (0, LINE)), constant_values=PAPER) for frame in frames]
        rows.append(np.concatenate(framed, axis=1))
    return np.concatenate(rows)


def write_contact_sheet(
    path: Path, identities: Sequence[int], settings: WalkerSettings | None = None
) -> None:
    """Draw walkers into a png file.

    Raises:
        MissingExtraError: pillow is not installed.
        DataError: the file cannot be written.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("drawing a contact sheet", "report") from None
    image = Image.fromarray(draw_contact_sheet(identities, settings))
    beside = path.with_name(f".{path.name}.part")
    try:
        image.save(beside, format="PNG")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DataError(f"{path}: the picture cannot be written ({error.strerror or error})") from None
