"""Checks of invariants that other code of the package guarantees. A breach is an internal error."""

from __future__ import annotations

from typing import TypeVar

Thing = TypeVar("Thing")


class BrokenInvariantError(RuntimeError):
    """Something that other code of this package guarantees does not hold."""


def present(thing: Thing | None) -> Thing:
    """Return a thing that cannot be None.

    Raises:
        BrokenInvariantError: it is.
    """
    if thing is None:
        raise BrokenInvariantError("a value that must be there is None")
    return thing


def of_type(thing: object, kind: type[Thing]) -> Thing:
    """Return a thing that can only be of one type.

    Raises:
        BrokenInvariantError: it is of another.
    """
    if not isinstance(thing, kind):
        raise BrokenInvariantError(f"a {kind.__name__} was expected, not a {type(thing).__name__}")
    return thing
