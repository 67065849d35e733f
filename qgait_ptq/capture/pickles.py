"""Contents of a pickle of weights, read without importing or running anything that it names.

Checkpoints hold settings, paths and scores beside the weights. torch's unpickler for weights refuses their
classes. Here each of them gets a stand-in that only stores: nothing is imported, and nothing is built.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch

from qgait_ptq.errors import ModelError, first_line

GLOBAL = b"c"  # the opcode of a pickle that names a class
LONGEST_NAME = 500  # characters of a module and its class
LEGACY_PICKLES = 4  # magic number, version, system, content
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number
# torch's unpickler lists all names at each operation with one of them.
MOST_COMPARISONS = 5_000_000
# Names that tensors are saved with: torch.FloatStorage, torch.float32, torch._utils._rebuild_tensor_v2, …
OF_TENSORS = re.compile(
    r"torch\.\w+|torch\._utils\._rebuild_\w+|torch\.nn\.parameter\.Parameter|collections\.OrderedDict|"
    r"_codecs\.encode"
)
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


FILLED = {"SETITEM": Filling.ITEMS, "SETITEMS": Filling.ITEMS}
FILLED |= {"APPEND": Filling.ELEMENTS, "APPENDS": Filling.ELEMENTS}


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


def is_of_tensors(name: str) -> bool:
    """Return whether a class or function belongs to tensors, so that torch reads it."""
    return OF_TENSORS.fullmatch(name) is not None


def survey_pickles(path: Path, data: bytes, pickles: Sequence[zipfile.ZipInfo]) -> Survey:
    """Read which classes and functions a file names, without following any of them.

    torch searches its own error with an expression whose time grows with the square of a name's length, so
    names longer than any that exists are refused.

    Args:
        path: named in errors.
        data: content of the file: an archive, or pickles one behind the other, as torch wrote before 1.6.
        pickles: members of the archive that are pickles.

    Raises:
        ModelError: a name is too long, or the archive is damaged.
    """
    if pickles:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                streams = [io.BytesIO(archive.read(member)) for member in pickles]
        except Exception as error:  # damaged members raise many kinds
            raise ModelError(f"{path}: a damaged archive ({first_line(error)})") from None
    else:
        streams = [io.BytesIO(data)] * LEGACY_PICKLES
    survey = Survey()
    for stream in streams:
        _Surveyor(stream, survey).read()
    if survey.longest > LONGEST_NAME:
        raise ModelError(f"{path}: not a model; it has a class name of {survey.longest:,} characters")
    return survey


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


class _Surveyor:
    """Follows the stack of one pickle, as far as it is one; values are names and objects of names."""

    def __init__(self, stream: io.BytesIO, survey: Survey) -> None:
        self._stream, self._survey = stream, survey
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}

    def read(self) -> None:
        """Add to the survey what the pickle names; it is followed only if names are not those of tensors."""
        begin = self._stream.tell()
        if not self._read_names():
            return
        end = self._stream.tell()
        self._stream.seek(begin)
        with suppress(Exception):  # as far as the names could be read
            for opcode, argument, _ in pickletools.genops(self._stream):
                if not self._follow(opcode, argument):
                    break
        self._stream.seek(end)

    def _read_names(self) -> bool:
        """Measure all names; give whether there are others than those of tensors."""
        size, operations, others = self._stream.getbuffer().nbytes, pickletools.genops(self._stream), False
        while True:
            start = self._stream.tell()
            try:
                opcode, argument, _ = next(operations)
            except StopIteration:
                return others
            except Exception:  # torch says what is wrong; it takes a name that nothing ends, too
                if self._stream.getbuffer()[start : start + 1] == GLOBAL:
                    self._survey.measure(size - start)
                return others
            if opcode.name == "GLOBAL":
                self._survey.measure(len(str(argument)))
                others = others or not is_of_tensors(_present_name(str(argument)))

    def _follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> bool:
        """Return whether the operation could be followed; torch refuses what cannot."""
        try:
            if opcode.name == "GLOBAL":
                self._stack.append(self._name(argument))
            elif opcode.name in ("REDUCE", "NEWOBJ"):
                made_by, _ = self._take(2)
                self._stack.append(_Object(made_by) if isinstance(made_by, str) else None)
                self._count(made_by if isinstance(made_by, str) else None)
            elif opcode.name == "BUILD":
                self._take(1)
                self._count(getattr(self._stack[-1], "name", None))
            elif opcode.name in FILLED:
                self._take_arguments(opcode.stack_before[1:])
                if isinstance(self._stack[-1], _Object):
                    self._survey.names[self._stack[-1].name] = FILLED[opcode.name]
            elif "PUT" in opcode.name:
                self._memo[argument] = self._stack[-1]
            elif "GET" in opcode.name:
                self._stack.append(self._memo[argument])
            else:
                self._take_arguments(opcode.stack_before)
                self._stack += [
                    kind if kind is pickletools.markobject else None for kind in opcode.stack_after
                ]
        except (IndexError, KeyError):
            return False
        return True

    def _name(self, argument: str) -> str:
        name = _present_name(argument)
        self._count(name)
        self._survey.names.setdefault(name, Filling.STATE)
        return name

    def _count(self, name: str | None) -> None:
        if name is None or not is_of_tensors(name):
            self._survey.count_step()

    def _take_arguments(self, kinds: Sequence[pickletools.StackObject]) -> None:
        if pickletools.markobject in kinds:
            while self._stack.pop() is not pickletools.markobject:
                pass
            kinds = kinds[: kinds.index(pickletools.markobject)]
        self._take(len(kinds))

    def _take(self, count: int) -> list[Any]:
        return [self._stack.pop() for _ in range(count)][::-1]


@dataclass(frozen=True)
class _Object:
    name: str


def _present_name(argument: str) -> str:
    """``module.name`` with the names that Python 2 had replaced, as torch reads them."""
    module, _, name = argument.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
