"""Functions that make a network: of the user, and of the built-in zoo with arguments from a file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qgait_ptq.capture.checkpoint_contents import children
from qgait_ptq.errors import ModelError, QgaitError, first_line

LARGEST_ARGUMENT, LONGEST_LIST, DEEPEST_LIST = 4096, 64, 3  # limits of arguments that a file gives
Factory = Callable[..., nn.Module]


def import_object(name: str, what: str) -> Any:
    """Import ``module:name``. The current folder is searched too.

    Raises:
        ModelError: the module or the name does not exist, is the path of a file, or its import fails.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"{what} {name!r} does not have the form module:name")
    if "/" in module_name or os.sep in module_name or module_name.endswith(".py"):
        file = Path(module_name)
        here = file.parent == Path()
        where = "" if here else f" and run the command in {file.parent}, or add this folder to PYTHONPATH"
        raise ModelError(f"{what} {name!r} names a file, not a module; write {file.stem}:{attribute}{where}")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        imported: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            imported = getattr(imported, part)
    except Exception as error:
        raise ModelError(
            f"{what} {name!r} cannot be imported ({type(error).__name__}: {first_line(error)})"
        ) from error
    return imported


def make_module(factory: Callable[..., Any], name: str, *arguments: Any, **keywords: Any) -> nn.Module:
    """Call a user's factory or adapter.

    Raises:
        ModelError: the call fails, or its result is not a module.
    """
    try:
        network = factory(*arguments, **keywords)
    except QgaitError:
        raise
    except Exception as error:
        settings = f" with {keywords}" if keywords else ""
        raise ModelError(
            f"{name} cannot make a network{settings} ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} returns a {type(network).__name__}, not a torch.nn.Module")
    return network


def named_architecture(
    path: Path,
    architecture: Any,
    zoo: Mapping[str, Factory],
) -> tuple[Factory, Mapping[str, Any]]:
    """Return the built-in network that a file names, and its arguments.

    Raises:
        ModelError: the network does not exist, or the arguments are not small numbers and texts.
    """
    described = dict(children(architecture)) if isinstance(architecture, dict) else {"name": architecture}
    name, arguments = described.get("name"), described.get("arguments", {})
    if not isinstance(name, str) or name not in zoo:
        raise ModelError(f"{path}: unknown network {name!r}; built-in networks are {', '.join(zoo)}")
    if not isinstance(arguments, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in dict.items(arguments)
    ):
        raise ModelError(
            f"{path}: the arguments of its network must be names with texts, numbers up to "
            f"{LARGEST_ARGUMENT}, or short lists of these"
        )
    return zoo[name], dict(children(arguments))


def _is_plain(value: Any, levels: int = DEEPEST_LIST) -> bool:
    """Return whether an argument is a small number, a text, or a short list of these."""
    if isinstance(value, list | tuple):
        return levels > 0 and len(value) <= LONGEST_LIST and all(_is_plain(one, levels - 1) for one in value)
    if isinstance(value, str):
        return len(value) <= LARGEST_ARGUMENT
    return isinstance(value, int | float) and abs(value) <= LARGEST_ARGUMENT
