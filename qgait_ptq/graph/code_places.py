"""Places in a user's code: of an error, of the code that is being executed, and of a stack trace."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path

import torch

PACKAGES = (Path(torch.__file__).parent, Path(__file__).parents[1])  # not the user's code


@dataclass(frozen=True)
class CodePlace:
    """A line of a user's code.

    Attributes:
        file: path of the file.
        line: line number.
        code: stripped text of the line.
    """

    file: str
    line: int
    code: str


def find_place(error: BaseException, folder: Path | None = None) -> CodePlace | None:
    """Return the innermost line of a traceback outside torch and the toolkit; None if there is none.

    Args:
        error: error with its traceback.
        folder: folder of the code base. Lines in it are preferred to those of other packages.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if folder is not None and Path(frame.filename).is_relative_to(folder)]
    return innermost(own) or innermost(frames)


def find_caller() -> CodePlace | None:
    """Return the line of a network that is being executed; None where its code is in no file."""
    frames = dropwhile(_is_toolkit, reversed(traceback.extract_stack()))
    return innermost(reversed(list(takewhile(lambda frame: not _is_toolkit(frame), frames))))


def find_line(stack_trace: str) -> CodePlace | None:
    """Return the innermost line of a user's code in a stack trace that torch.export wrote as text."""
    lines = re.findall(r'File "(.+)", line (\d+), in (.+)\n +(.*)', stack_trace)
    return innermost(
        traceback.FrameSummary(file, int(line), name, line=code) for file, line, name, code in lines
    )


def innermost(frames: Iterable[traceback.FrameSummary]) -> CodePlace | None:
    """Return the last line of some frames that is a user's code; None if there is none."""
    place = None
    for frame in frames:
        path = Path(frame.filename)
        is_code = path.is_file() and not any(path.is_relative_to(package) for package in PACKAGES)
        if is_code and frame.lineno is not None:
            place = CodePlace(frame.filename, frame.lineno, frame.line or "")
    return place


def _is_toolkit(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(PACKAGES[1])
