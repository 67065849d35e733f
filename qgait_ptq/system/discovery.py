"""Modules of a package that are found by their place: adding one adds a file and changes no other."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

Kind = TypeVar("Kind")


def module_names(path: Iterable[str]) -> list[str]:
    """Return the names of the modules of a package in alphabetical order; none is imported.

    Args:
        path: ``__path__`` of the package.
    """
    return sorted(module.name for module in iter_modules(path))


def find_instances(package: str, path: Iterable[str], kind: type[Kind]) -> list[Kind]:
    """Import all modules of a package, and return the objects of one type that they define.

    Args:
        package: dotted name of the package.
        path: ``__path__`` of the package.
        kind: type of the objects.

    Returns:
        Each object once, by the name of its module and in the order of definition.
    """
    modules = [import_module(f"{package}.{name}") for name in module_names(path)]
    instances = [value for module in modules for value in vars(module).values() if isinstance(value, kind)]
    return list({id(instance): instance for instance in instances}.values())
