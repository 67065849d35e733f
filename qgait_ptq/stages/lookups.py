"""The error of a network that looks up an index which its table does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

from qgait_ptq.errors import DataError, first_line

ONE_HOT_ERROR = "Class values must be"  # words of the RuntimeError of torch's one_hot
OPERATORS = Path(torch.__file__).parent / "_ops.py"  # calls every operator of a graph


@contextmanager
def checked_lookups(where: str) -> Iterator[None]:
    """Turn an index error of an operator into a `DataError`.

    Limits of integer inputs are known, and reading checks them (`GaitDataset.limited`). The limits of
    indices that a network computes are not known before the operator fails.

    Args:
        where: name of the stage in errors.

    Raises:
        DataError: an operator of a graph got an index out of range.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        is_index = isinstance(error, IndexError) or ONE_HOT_ERROR in str(error)
        if not is_index or not _is_of_operator(error.__traceback__):
            raise
        raise DataError(
            f"{where}: the network looks up an index that is too large or negative ({first_line(error)}); "
            "check the labels and values of the sequences"
        ) from error


def _is_of_operator(trace: TracebackType | None) -> bool:
    """Return whether an operator raised the error, and no code of Python."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename) == OPERATORS
