"""Loading a `torch.export` program without running what the file says.

`torch.export.load` unpickles some payloads without restriction and evaluates the symbolic sizes as Python.
An archive is looked through before it is handed over, and refused where either could run code.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from qgait_ptq.errors import ModelError, first_line
from qgait_ptq.graph.trace import quiet_torch

# What may stand in the symbolic sizes of an exported program, which torch evaluates as Python.
SAFE_NAMES = (
    "Symbol Integer Rational Mul Add Pow Min Max Mod PythonMod FloorDiv CeilDiv CleanDiv Eq Ne Ge Gt Le Lt "
    "And Or Not int_oo positive integer nonnegative negative real True False"
).replace(" ", "|")
SAFE_EXPRESSION = re.compile(rf"^(?:'[su]\d+'|[su]\d+\b|(?:{SAFE_NAMES})\b|\d+\b|[\s+\-*/%(),<>=!&|~])*$")


def load_exported_program(path: Path, data: bytes, trust_pickle: bool) -> nn.Module:
    """Load what `torch.export.save` wrote.

    Args:
        path: named in errors.
        data: content of the file.
        trust_pickle: whether loading may run code from the file.

    Raises:
        ModelError: loading would run code, or this torch cannot load it.
    """
    if not trust_pickle:
        _check_exported_program(path, data)
    try:
        with quiet_torch():
            return cast(nn.Module, torch.export.load(io.BytesIO(data)).module(check_guards=False))
    except Exception as error:
        raise ModelError(
            f"{path}: looks like an exported program, but torch {torch.__version__} cannot load it "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _check_exported_program(path: Path, data: bytes) -> None:
    """Refuse archives in which loading would unpickle objects or evaluate expressions."""
    refuse = f"{path}: this exported program would run code when loaded (%s); load it with --trust-pickle"
    archive = zipfile.ZipFile(io.BytesIO(data))
    for name in archive.namelist():
        if name.endswith(".json"):
            try:
                content = json.loads(archive.read(name))
            except (UnicodeDecodeError, json.JSONDecodeError):
                raise ModelError(f"{path}: damaged: {name} is not JSON") from None
            for key, value in _walk(content):
                if key == "use_pickle" and value:
                    raise ModelError(refuse % "a pickled payload")
                if key == "expr_str" and not SAFE_EXPRESSION.match(str(value)):
                    raise ModelError(refuse % "a symbolic size that is no arithmetic")
        elif "sample_inputs" in name:
            try:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            except Exception:
                raise ModelError(refuse % "sample inputs that are no tensors") from None


def _walk(content: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) pairs of nested JSON."""
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from item.items()
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
