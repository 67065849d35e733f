"""Import of code bases whose dependencies are partly not installed.

A network is a few files of a code base. Other files plot, log, augment and evaluate. Their dependencies are
not needed to quantize the network.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

# Modules that are installed but cannot be imported without another one.
NEEDS = {"torch.utils.tensorboard": "tensorboard"}


class _Absent(type):
    """The class of names in modules that are not installed. A call raises an error."""

    missing_name: str  # full name of what is missing, such as ``torchvision.ops.RoIAlign``; inherited

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        package = cls.missing_name.partition(".")[0]
        is_own = cls.__qualname__ != cls.missing_name  # a class of the code base, derived from it
        needed = f"{cls.__qualname__} needs {cls.missing_name}" if is_own else f"{cls.missing_name} is needed"
        raise ModuleNotFoundError(f"{needed}, but {package} is not installed", name=package)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _absent(f"{cls.missing_name}.{name}")


class AbsentModule(ModuleType):
    """Replaces a module that is not installed. Any name can be imported from it, but not called."""

    __path__: list[str] = []  # noqa: RUF012 - so that it counts as a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _absent(f"{self.__name__}.{name}")


def _absent(name: str) -> Any:
    namespace = {"__module__": name.partition(".")[0], "__qualname__": name, "missing_name": name}
    return _Absent(name.rpartition(".")[2], (), namespace)


@contextmanager
def without_missing(folder: Path) -> Iterator[tuple[str, ...]]:
    """Make code in a folder importable although some modules are not installed.

    Args:
        folder: folder of the code base, which is on the path.

    Yields:
        Names of the modules that are not installed.
    """
    missing = find_missing(folder)
    added = {name: AbsentModule(name) for name in missing if name not in sys.modules}
    sys.modules.update(added)
    try:
        yield missing
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def find_missing(folder: Path) -> tuple[str, ...]:
    """Return the modules that code in a folder imports and that are not installed, with their packages."""
    own = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()}
    imported = {name for file in folder.rglob("*.py") for name in _imported(file)}
    missing: set[str] = set()
    for name in imported:
        steps = name.split(".")
        if steps[0] not in own and not _is_installed(name):
            paths = (".".join(steps[: count + 1]) for count in range(len(steps)))
            missing.update(path for path in paths if not _is_installed(path))
    return tuple(sorted(missing))


def _imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports by absolute names."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return  # Python reports the error if the file is needed
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def _is_installed(name: str) -> bool:
    if name in NEEDS:
        return _is_installed(NEEDS[name])
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):  # its package is missing, or is a module
        return False
