"""Names of classes and functions in a pickle of weights, read without importing or running any of them."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgait_ptq.capture.stand_ins import Filling, Survey
from qgait_ptq.errors import ModelError, first_line

GLOBAL = b"c"  # the opcode of a pickle that names a class
LONGEST_NAME = 500  # characters of a module and its class
LEGACY_PICKLES = 4  # magic number, version, system, content
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number
# Names that tensors are saved with: torch.FloatStorage, torch.float32, torch._utils._rebuild_tensor_v2, …
OF_TENSORS = re.compile(
    r"torch\.\w+|torch\._utils\._rebuild_\w+|torch\.nn\.parameter\.Parameter|collections\.OrderedDict|"
    r"_codecs\.encode"
)
FILLED = {"SETITEM": Filling.ITEMS, "SETITEMS": Filling.ITEMS}
FILLED |= {"APPEND": Filling.ELEMENTS, "APPENDS": Filling.ELEMENTS}


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
