"""Reading pickled silhouettes without running what a file says.

OpenGait stores sequences as pickles. A pickle is a program; this unpickler runs only the few calls that
rebuild a numpy array.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from qgait_ptq.errors import DataError

ADMITTED = frozenset(
    (module, name)
    for package in ("numpy._core", "numpy.core")
    for module, name in ((f"{package}.multiarray", "_reconstruct"), (f"{package}.numeric", "_frombuffer"))
) | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how protocols 0 to 2 spell bytes; it turns text into bytes and nothing else
}


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that admits numpy arrays and the built-in containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Give the admitted global.

        Raises:
            pickle.UnpicklingError: for every other global.
        """
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of an array")
        return super().find_class(module, name)


def load_array_pickle(path: Path) -> Any:
    """Unpickle a file of numpy arrays.

    Raises:
        DataError: the file is not a pickle, is damaged, or would run code.
    """
    data = path.read_bytes()
    try:
        return ArrayUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a hostile stream can make the unpickler raise anything
        raise DataError(f"{path}: not a pickled array ({error}); nothing of it was run") from None
