"""Stand-ins for objects that a pickle of weights holds beside the weights.

Checkpoints hold settings, paths and scores beside the weights. torch's unpickler for weights refuses their
classes. Here each of them gets a stand-in that only stores: nothing is imported, and nothing is built.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pickle import UnpicklingError
from typing import Any, cast

import torch

# torch's unpickler lists all names at each operation with one of them.
MOST_COMPARISONS = 5_000_000
# Classes and functions that data are built with. Their arguments are stored; no other name may be called.
BUILDERS = frozenset(
    {
        *(f"pathlib.{way}{kind}" for way in ("", "_local.") for kind in ("Path", "PosixPath", "WindowsPath")),
        *(f"pathlib.{way}Pure{kind}Path" for way in ("", "_local.") for kind in ("", "Posix", "Windows")),
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")
        ),
        *(f"numpy.random._pickle.__{kind}_ctor" for kind in ("generator", "bit_generator", "randomstate")),
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
        "numpy.dtype",
        "types.SimpleNamespace",
        "collections.defaultdict",
        "collections.deque",
        *(f"datetime.{kind}" for kind in ("date", "datetime", "time", "timedelta", "timezone")),
        "decimal.Decimal",
        "fractions.Fraction",
        *(f"builtins.{kind}" for kind in ("frozenset", "range", "slice")),
    }
)


class Filling(Enum):
    """Kind of content of a class's objects, which determines their stand-in."""

    STATE = auto()  # attributes, or nothing
    ITEMS = auto()  # a dictionary
    ELEMENTS = auto()  # a list


@dataclass
class Survey:
    """Names in the pickles of a file.

    Attributes:
        names: of classes and functions, with what is put into their objects.
        longest: number of characters of the longest name.
        steps: operations with other names than those of tensors.
    """

    names: dict[str, Filling] = field(default_factory=dict)
    longest: int = 0
    steps: int = 0

    def measure(self, length: int) -> None:
        """Note the length of a name."""
        self.longest = max(self.longest, length)

    def count_step(self) -> None:
        """Count an operation with a name other than those of tensors."""
        self.steps += 1

    @property
    def bounded(self) -> bool:
        """Return whether torch's unpickler reads the names in reasonable time."""
        return len(self.names) * self.steps <= MOST_COMPARISONS


class _StandInType(type):
    """The type of stand-ins: calling one stores what it is called with, or is refused."""

    stored_name: str
    filling: Filling
    refused: list[str]

    def __call__(cls, *arguments: Any) -> Any:
        if cls.stored_name not in BUILDERS:
            cls.refused.append(cls.stored_name)
            raise UnpicklingError(f"{cls.stored_name} would be called")
        return cls.__new__(cls, *arguments)  # type: ignore[arg-type]  # of the class below


class StandIn(metaclass=_StandInType):
    """An object of a class that is never imported, with what the file says of it."""

    stored_name = ""
    filling = Filling.STATE
    refused: list[str] = []  # noqa: RUF012 - one of each load, see `stand_ins`

    def __new__(cls, *arguments: Any) -> Any:
        """Store arguments; dictionaries and lists are filled as plain ones."""
        if cls.filling is Filling.ITEMS:
            return OrderedDict()
        if cls.filling is Filling.ELEMENTS:
            return []
        stored = object.__new__(cls)
        stored.__dict__["arguments"] = arguments
        return stored

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    @property
    def is_module(self) -> bool:
        """Return whether the object would be a module of torch."""
        state = self.__dict__.get("state")
        return isinstance(state, dict) and "_modules" in state


@contextmanager
def stand_ins(survey: Survey) -> Iterator[list[str]]:
    """Let torch's unpickler for weights read the classes that a file names, as stand-ins.

    Classes that torch, or the program around, allows already are read as they are. A file with too many
    names gets no stand-ins, so that torch refuses it.

    Yields:
        Names that were refused, because they would be called.
    """
    refused: list[str] = []
    allowed = {name for name, _ in map(_allowed_name, torch.serialization.get_safe_globals())}
    added = [
        (_StandInType("StandIn", (StandIn,), {"stored_name": name, "filling": how, "refused": refused}), name)
        for name, how in survey.names.items()
        if survey.bounded and name not in allowed
    ]
    with torch.serialization.safe_globals(cast(list[Any], added)):
        yield refused


def _allowed_name(entry: Any) -> tuple[str, Any]:
    if isinstance(entry, tuple):
        return entry[1], entry[0]
    return f"{entry.__module__}.{entry.__qualname__}", entry
