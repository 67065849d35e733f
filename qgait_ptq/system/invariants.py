"""Checks of invariants that other code of the package guarantees. A violation is an internal error."""

from __future__ import annotations

from typing import TypeVar

Thing = TypeVar("Thing")


class BrokenInvariantError(RuntimeError):
    """A guarantee of other code in this package is violated."""


def present(thing: Thing | None) -> Thing:
    """Return a value that cannot be None.

    Raises:
        BrokenInvariantError: the value is None.
    """
    if thing is None:
        raise BrokenInvariantError("a value is None, but must be set")
    return thing


def of_type(thing: object, kind: type[Thing]) -> Thing:
    """Return a value that can only have one type.

    Raises:
        BrokenInvariantError: the value has another type.
    """
    if not isinstance(thing, kind):
        raise BrokenInvariantError(f"a {kind.__name__} was expected, not a {type(thing).__name__}")
    return thing
