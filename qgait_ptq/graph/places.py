"""Source locations of graph nodes in the user's code."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx

PLACE_KEY = "qgait.place"
FRAME = re.compile(r'File "([^"]+)", line (\d+)')
PACKAGES = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),
)  # frames in these packages do not help a user


def place_of(node: fx.Node) -> str:
    """Return ``file.py:12`` of the innermost line of the user's code; empty if it is not known."""
    return str(node.meta.get(PLACE_KEY, ""))


def read_place(stack_trace: str | None) -> str:
    """Return the innermost line of the user's code in a stack trace of torch.export, as ``file.py:12``.

    Args:
        stack_trace: text of a traceback; None if torch kept none.
    """
    frames = FRAME.findall(stack_trace or "")
    own = [f"{file}:{line}" for file, line in frames if not file.startswith(PACKAGES)]
    return own[-1] if own else ""
