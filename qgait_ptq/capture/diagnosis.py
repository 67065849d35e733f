"""Explanation of a failed capture for the author of the network: line, cause and remedies."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path

import torch

from qgait_ptq.errors import first_line

PACKAGES = (Path(torch.__file__).parent, Path(__file__).parents[1])  # not the user's code
# Words of the exporter's message → cause, and the best remedy.
CONSTRUCTS = (
    (
        ("data-dependent", "data dependent"),
        "the line makes a decision, a size or a number from the values of a tensor (if, int(…), .item())",
        "compute with tensors instead, such as torch.where",
    ),
    (
        (".numpy()", "tolist", "can't convert cuda tensor"),
        "the line converts tensors to numpy or plain numbers",
        "compute with torch operators instead",
    ),
    (
        ("cuda",),
        "the line moves tensors to a GPU",
        "create tensors on the device of the input (x.new_zeros, device=x.device)",
    ),
    (
        ("Constraints violated", "specialized", "L['args']"),
        "the line fixes the batch size or the frame count",
        "use sizes without int(…), and no loops over frames",
    ),
)


# The same for errors of the network's own forward.
FORWARD_CAUSES = (
    (
        ("nvidia", "cuda", "cudnn"),
        "its code assumes a GPU: create tensors on the device of the input (x.new_zeros, device=x.device)",
    ),
    (
        ("is not installed", "no module named"),
        "install the missing package",
    ),
    (
        ("has no attribute", "missing 1 required", "missing 2 required", "positional argument", "nonetype"),
        "its code expects another input, or attributes that are set elsewhere, such as labels or a "
        "configuration; bring it to one input in an adapter (--adapter module:class wraps the network)",
    ),
    (
        ("size", "shape", "dimension", "channels", "kernel", "expected", "index", "view", "stack", "cat"),
        "check the shape of a frame and the order of axes; an adapter (--adapter module:class) brings the "
        "input to what the network expects. Where it takes one frame count only, name that with --frames",
    ),
)
OTHER_CAUSE = "run the network on such an input in Python, and mend that line first"


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


def find_place(error: BaseException) -> CodePlace | None:
    """Return the innermost line of a traceback outside torch and the toolkit; None if there is none."""
    return innermost(traceback.extract_tb(error.__traceback__))


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


def explain_forward_failure(error: BaseException, what: str) -> str:
    """Return where and why a network's own forward failed, and what helps.

    Args:
        error: raised by the network.
        what: says what was tried, for the first words.
    """
    text = str(error).lower()
    remedy = next(
        (remedy for marks, remedy in FORWARD_CAUSES if any(mark in text for mark in marks)), OTHER_CAUSE
    )
    place = find_place(error)
    where = f"\n  at {place.file}:{place.line}\n    {place.code}\n  " if place else "; "
    return f"{what} ({type(error).__name__}: {first_line(error)}){where}{remedy}"


def _is_toolkit(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(PACKAGES[1])


def explain_failure(error: BaseException, doing: str) -> str:
    """Explain what stopped the capture, in a few lines.

    Args:
        error: error from torch.export.
        doing: first words of the explanation.
    """
    text = f"{type(error).__name__}: {error}"
    construct, remedy = next(
        ((what, remedy) for marks, what, remedy in CONSTRUCTS if any(mark in text for mark in marks)),
        (f"{type(error).__name__}: {first_line(error)}", "use operators that torch.export supports"),
    )
    place = find_place(error)
    where = f" at {place.file}:{place.line}\n    {place.code}\n  " if place else ": "
    remedies = (
        f"{remedy}; or override that code in an adapter (--adapter module:class wraps the network); or "
        "quantize the backbone alone and keep the rest in float (--capture-submodule NAME); or, for a fixed "
        "frame count, pass --frames"
    )
    return f"{doing}{where}{construct}\n  remedies: {remedies}"
