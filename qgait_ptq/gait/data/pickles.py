"""Reading pickled silhouettes without running code from the file.

OpenGait stores sequences as pickles. A pickle is a program, and numpy's constructors corrupt memory if a
hostile pickle calls them. This reader therefore uses neither `pickle.load` nor these constructors.
`pickletools.genops` splits the file into opcodes without running them. The few opcodes that arrays and
containers need work on plain values, and `build_array` builds each array from checked bytes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.limits import (
    ARRAY_FILE_BYTES,
    PICKLE_STEPS,
    SEQUENCE_BYTES,
    build_array,
    check_extent,
    error_text,
    number_type,
)
from qgait_ptq.system.reading import read_bytes


class Stand(Enum):
    """Stand-ins for the globals that a pickled array names."""

    RECONSTRUCT = "_reconstruct"
    FROM_BUFFER = "_frombuffer"
    ARRAY = "ndarray"
    DTYPE = "dtype"
    ENCODE = "encode"  # bytes in protocols 0 to 2
    BYTES = "bytes"  # empty bytes in protocols 0 to 2


STANDS: Mapping[str, Stand] = {
    "numpy ndarray": Stand.ARRAY,
    "numpy dtype": Stand.DTYPE,
    "_codecs encode": Stand.ENCODE,
    "__builtin__ bytes": Stand.BYTES,
    "builtins bytes": Stand.BYTES,
    **{f"numpy.{core}.multiarray _reconstruct": Stand.RECONSTRUCT for core in ("core", "_core")},
    **{f"numpy.{core}.numeric _frombuffer": Stand.FROM_BUFFER for core in ("core", "_core")},
}
VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),  # Python 2
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
TUPLES: Mapping[str, int] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
SKIPPED = frozenset(("PROTO", "FRAME"))
LARGEST_KEY = 2**16  # larger integers can have equal hashes, which make a dictionary slow
BYTES = (bytes, bytearray)


@dataclass
class DtypeDraft:
    """A dtype whose byte order can still be set."""

    dtype: np.dtype[Any]


@dataclass
class ArrayDraft:
    """An array before its values are set. Only the memo can refer to it."""

    memo_keys: list[int] = field(default_factory=list)


class ArrayPickle:
    """A stack machine that runs the opcodes of pickled arrays, lists, tuples and dictionaries."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = {Stand.ARRAY: SEQUENCE_BYTES, Stand.ENCODE: SEQUENCE_BYTES}

    def load(self, data: bytes) -> Any:
        """Return the content of a pickle.

        Raises:
            ValueError: the pickle has other content than arrays and containers, or is too large.
            Exception: a damaged pickle can raise any error.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count == PICKLE_STEPS:
                raise ValueError(f"it has more than {PICKLE_STEPS} opcodes")
            if opcode.name in VALUES:
                self.stack.append(argument)
            elif opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name]())
            elif opcode.name in TUPLES:
                self.stack.append(tuple(reversed([self.pop() for _ in range(TUPLES[opcode.name])])))
            elif opcode.name in STEPS:
                STEPS[opcode.name](self, argument)
            elif opcode.name == "STOP":
                break
            elif opcode.name not in SKIPPED:
                raise ValueError(f"it uses the opcode {opcode.name}, which arrays do not need")
        return self.pop()

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Remove and return the topmost value, which must be complete."""
        (value,) = _complete([self.stack.pop()])
        return value

    def pop_marked(self) -> list[Any]:
        """Remove and return all values since the last mark."""
        values = _complete(self.stack)
        self.stack = self.marked.pop()
        return values

    def mark(self, _: Any) -> None:
        """Begin a group of values."""
        self.marked.append(self.stack)
        self.stack = []

    def append(self, values: list[Any]) -> None:
        """Put values at the end of the topmost list."""
        if type(self.stack[-1]) is not list:
            raise ValueError(f"it appends values to {_kind(self.stack[-1])}, which is not a list")
        self.stack[-1].extend(values)

    def begin_dict(self, values: list[Any]) -> None:
        """Put a dictionary of keys and values on the stack."""
        self.stack.append({})
        self.set_items(values)

    def set_items(self, values: list[Any]) -> None:
        """Put pairs of keys and values into the topmost dictionary."""
        target, keys = self.stack[-1], values[::2]
        if type(target) is not dict:
            raise ValueError(f"it sets items of {_kind(target)}, which is not a dictionary")
        if not all(isinstance(key, str) or (type(key) is int and 0 <= key < LARGEST_KEY) for key in keys):
            raise ValueError("it holds a dictionary with keys other than texts and small integers")
        target.update(zip(keys, values[1::2], strict=True))

    def remember(self, key: int) -> None:
        """Keep the topmost value in the memo."""
        self.memo[key] = self.stack[-1]
        if isinstance(self.stack[-1], ArrayDraft):
            self.stack[-1].memo_keys.append(key)

    def recall(self, key: int) -> None:
        """Put a value from the memo on the stack."""
        if key not in self.memo:
            raise ValueError("it refers to a value that it does not hold")
        self.stack.extend(_complete([self.memo[key]]))

    def name_global(self, name: str) -> None:
        """Put the stand-in of a global on the stack."""
        if name not in STANDS:
            requested = ".".join(name[:100].split(" ", 1))
            raise ValueError(f"it asks for {requested!r}, which arrays do not need")
        self.stack.append(STANDS[name])

    def name_global_from_stack(self, _: Any) -> None:
        """Put the stand-in of a global on the stack, named by two texts."""
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("it names a global by something other than text")
        self.name_global(f"{module} {name}")

    def call(self, _: Any) -> None:
        """Call the global of a stand-in as the pickle of an array does."""
        arguments, stand = self.pop(), self.pop()
        if not isinstance(stand, Stand) or type(arguments) is not tuple:
            raise ValueError(f"it calls {_kind(stand)}")
        if stand is Stand.DTYPE and 1 <= len(arguments) <= 3 and isinstance(arguments[0], str):
            self.stack.append(DtypeDraft(number_type(arguments[0])))
        elif stand is Stand.RECONSTRUCT and len(arguments) == 3 and arguments[0] is Stand.ARRAY:
            self.stack.append(ArrayDraft())
        elif stand is Stand.FROM_BUFFER and len(arguments) in (4, 5):
            self.stack.append(self._from_buffer(*arguments))
        elif stand is Stand.ENCODE and len(arguments) == 2 and arguments[1] in ("latin1", "latin-1"):
            self.stack.append(self._encode(arguments[0]))
        elif stand is Stand.BYTES and not arguments:
            self.stack.append(b"")
        else:
            raise ValueError(f"it calls {stand.value} in another way than arrays do")

    def set_state(self, _: Any) -> None:
        """Complete a dtype or an array with its state."""
        state, target = self.pop(), self.stack[-1]
        if type(state) is not tuple or not isinstance(target, DtypeDraft | ArrayDraft):
            raise ValueError(f"it sets the state of {_kind(target)}")
        if isinstance(target, DtypeDraft):
            if len(state) != 8 or state[0] != 3 or state[2:] != (None, None, None, -1, -1, 0):
                raise ValueError("it holds a dtype with fields or with a layout of its own")
            if not isinstance(state[1], str):
                raise ValueError("it holds a dtype without a byte order")
            target.dtype = number_type(state[1] + target.dtype.str[1:])
            return
        if len(state) != 5 or state[0] != 1:
            raise ValueError("it holds an array in an unknown form")
        _, shape, dtype, fortran, data = state
        self.stack[-1] = array = self._build(data, dtype, shape, "F" if fortran else "C")
        self.memo.update(dict.fromkeys(target.memo_keys, array))

    def _from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> NDArray[Any]:
        if order == "K" and type(axes) is tuple and all(type(axis) is int for axis in axes):
            return self._build(data, dtype, shape, "C").transpose(axes)
        return self._build(data, dtype, shape, order)

    def _build(self, data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
        if isinstance(data, str):  # bytes from Python 2
            data = self._encode(data)
        if not (isinstance(data, BYTES) and isinstance(dtype, DtypeDraft) and type(shape) is tuple):
            raise ValueError("it holds an array of something other than numbers")
        if order not in ("C", "F"):
            raise ValueError("it holds an array in an unknown order")
        self._spend(Stand.ARRAY, len(data))
        return build_array(data, dtype.dtype, shape, order)

    def _encode(self, text: Any) -> bytes:
        if not isinstance(text, str):
            raise ValueError("it encodes something other than text")
        self._spend(Stand.ENCODE, len(text))
        return text.encode("latin1")

    def _spend(self, purpose: Stand, size: int) -> None:
        # A pickle can refer to the same bytes any number of times.
        self.bytes_left[purpose] -= size
        if self.bytes_left[purpose] < 0:
            raise ValueError(f"it holds arrays of more than {SEQUENCE_BYTES} bytes")


STEPS: Mapping[str, Callable[[ArrayPickle, Any], None]] = {
    "MARK": ArrayPickle.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_marked())),
    "LIST": lambda machine, _: machine.push(machine.pop_marked()),
    "DICT": lambda machine, _: machine.begin_dict(machine.pop_marked()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_marked()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_marked()),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), ArrayPickle.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), ArrayPickle.recall),
    "GLOBAL": ArrayPickle.name_global,
    "STACK_GLOBAL": ArrayPickle.name_global_from_stack,
    "REDUCE": ArrayPickle.call,
    "BUILD": ArrayPickle.set_state,
}


def load_array_pickle(path: Path) -> Any:
    """Read a pickle of numpy arrays, or of lists, tuples and dictionaries of them.

    Raises:
        DataError: the file is not a pickle, is damaged, is too large, or asks for anything but arrays.
    """
    data = read_bytes(path, ARRAY_FILE_BYTES, "the sequence", DataError)
    try:
        content = ArrayPickle().load(data)
        check_extent(content)
    except Exception as error:  # a hostile stream can make the parser raise any error
        raise DataError(
            f"{path}: not a pickled array ({error_text(error)}); no code from it was run"
        ) from None
    return content


def _complete(values: list[Any]) -> list[Any]:
    if any(isinstance(value, ArrayDraft) for value in values):
        raise ValueError("it holds an array without values")
    return values


def _kind(value: Any) -> str:
    return value.value if isinstance(value, Stand) else type(value).__name__
