"""Contact sheet of walkers for visual inspection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.contact_sheet import encode_png, join_frames
from qgait_ptq.gait.data.sequences import cut_width
from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.population import WalkerSettings, render_identity
from qgait_ptq.system.writing import write_whole

SHOWN_VIEWS = (0, 54, 90)  # degrees
SHOWN_FRAMES = (0, 5, 10, 15)
MOST_WALKERS = 12


def draw_contact_sheet(
    identities: Sequence[int], settings: WalkerSettings | None = None
) -> NDArray[np.uint8]:
    """Draw one row for each walker: nm, bg and cl, each from three views with four frames.

    Args:
        identities: identities, of which at most the first twelve are drawn.
        settings: settings of the population.

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
        rows.append(frames)
    return join_frames(rows)


def write_contact_sheet(
    path: Path, identities: Sequence[int], settings: WalkerSettings | None = None
) -> None:
    """Draw walkers to a PNG file.

    Raises:
        DataError: the file cannot be written.
    """
    png = encode_png(draw_contact_sheet(identities, settings))
    try:
        write_whole(path, png)
    except OSError as error:
        raise DataError(f"{path}: the image cannot be written ({error.strerror or error})") from None
