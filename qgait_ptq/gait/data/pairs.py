"""Reading of ``(sequence, label)`` pairs in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.modalities import as_modalities, check_modalities
from qgait_ptq.gait.data.sequences import as_array, check_silhouettes, check_values, cut_width
from qgait_ptq.graph.frame_layout import FrameLayout, layout_of
from qgait_ptq.system.reading import shown

Load = Callable[[], NDArray[Any]]


def check_sequence(sequence: Any, where: str, raw: bool) -> tuple[Load, FrameLayout | None]:
    """Check a sequence in memory.

    Args:
        sequence: an array, or several as a tuple or a dictionary.
        where: name of the sequence in errors.
        raw: whether arrays ``[s, ...]`` are unscaled values instead of silhouettes.

    Returns:
        A function that returns the frames, and the layout of several arrays; None for one array.

    Raises:
        DataError: the sequence is not valid.
    """
    several = as_modalities(sequence)
    if several is None:
        array = as_array(sequence, where)
        array = check_values(array, where) if raw else cut_width(check_silhouettes(array, where))
        return partial(_identity, array), None
    arrays = {
        name: cut_width(array) if array.dtype == np.uint8 else array
        for name, array in check_modalities(several, where, raw).items()
    }
    layout = layout_of(arrays)
    return partial(layout.pack, list(arrays.values())), layout


def check_label(label: Any, where: str) -> str:
    """Return the name of the identity that a label means.

    Equal labels must give equal names. Other objects than text and integers can have a text of their own for
    each object, such as ``tensor(1)`` on two devices.

    Args:
        label: text or an integer, also as a numpy scalar, as a tensor without axes, or as a float
            without a fraction.
        where: name of the sequence in errors.

    Raises:
        DataError: the label is something else.
    """
    value = label.item() if getattr(label, "ndim", None) == 0 and hasattr(label, "item") else label
    if isinstance(value, float) and value.is_integer():  # as pandas and np.loadtxt read integers
        value = int(value)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise DataError(
        f"{where}: its label is {shown(label)} ({type(label).__name__}); use a text or an integer for each "
        "person"
    )


def _identity(array: NDArray[Any]) -> NDArray[Any]:
    return array
