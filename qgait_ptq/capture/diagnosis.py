"""Why a network could not be captured, for the person who wrote it: which line, what it does, what helps."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path

import torch

from qgait_ptq.errors import first_line

PACKAGES = (Path(torch.__file__).parent, Path(__file__).parents[1])  # whose frames tell a user nothing
# What the exporter's message holds → what the line does, and the way out that helps most.
CONSTRUCTS = (
    (
        ("data-dependent", "data dependent"),
        "it makes a decision, a size or a number from the values of a tensor (an if, int(…), .item())",
        "compute with tensors instead, such as torch.where",
    ),
    (
        (".numpy()", "tolist", "can't convert cuda tensor"),
        "it leaves torch for numpy or plain numbers",
        "compute with torch operators instead",
    ),
    (
        ("cuda",),
        "it moves tensors to a GPU by itself",
        "create tensors on the device of the input (x.new_zeros, device=x.device)",
    ),
    (
        ("Constraints violated", "specialized", "L['args']"),
        "it fixes the batch size or the frame count",
        "keep sizes as they are, instead of int(…) of them or loops over frames",
    ),
)


@dataclass(frozen=True)
class CodePlace:
    """A line of a user's code.

    Attributes:
        file: path as Python knows it.
        line: number.
        code: the line itself, stripped.
    """

    file: str
    line: int
    code: str


def find_place(error: BaseException) -> CodePlace | None:
    """The innermost line in an error's traceback that is neither torch's nor the toolkit's."""
    return _innermost(traceback.extract_tb(error.__traceback__))


def find_caller() -> CodePlace | None:
    """Return the line of a network that is being executed; None where its code is in no file."""
    frames = dropwhile(_is_toolkit, reversed(traceback.extract_stack()))
    return _innermost(reversed(list(takewhile(lambda frame: not _is_toolkit(frame), frames))))


def find_line(stack_trace: str) -> CodePlace | None:
    """Return the innermost line of a user's code in a stack trace that torch.export wrote as text."""
    lines = re.findall(r'File "(.+)", line (\d+), in (.+)\n +(.*)', stack_trace)
    return _innermost(
        traceback.FrameSummary(file, int(line), name, line=code) for file, line, name, code in lines
    )


def _innermost(frames: Iterable[traceback.FrameSummary]) -> CodePlace | None:
    found = None
    for frame in frames:
        path = Path(frame.filename)
        is_code = path.is_file() and not any(path.is_relative_to(package) for package in PACKAGES)
        if is_code and frame.lineno is not None:
            found = CodePlace(frame.filename, frame.lineno, frame.line or "")
    return found


def _is_toolkit(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(PACKAGES[1])


def explain_failure(error: BaseException, doing: str) -> str:
    """What stopped the capture, in a few lines.

    Args:
        error: what torch.export raised.
        doing: who refused what, for the first words.
    """
    text = f"{type(error).__name__}: {error}"
    construct, remedy = next(
        ((what, remedy) for marks, what, remedy in CONSTRUCTS if any(mark in text for mark in marks)),
        (f"{type(error).__name__}: {first_line(error)}", "write the line with operators that it takes"),
    )
    place = find_place(error)
    where = f" at {place.file}:{place.line}\n    {place.code}\n  " if place else ": "
    ways = (
        f"{remedy}; or override that part in an adapter (--adapter module:class wraps the network); or "
        "quantize the backbone alone and keep the rest in float (--capture-submodule NAME); or, where it is "
        "about the frame count, fix that with --frames"
    )
    return f"{doing}{where}{construct}\n  ways out: {ways}"
