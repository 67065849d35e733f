"""Equations of einsums: the axes of each tensor and of the result."""

from __future__ import annotations

DOTS = "..."


def explicit_equation(equation: str) -> tuple[list[str], str]:
    """Return the axes of all tensors and of the result; an einsum may leave the result out.

    Example:
        >>> explicit_equation("nc, dc")
        (['nc', 'dc'], 'dn')
    """
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = sorted(letter for letter in set(inputs) - set(".,") if inputs.count(letter) == 1)
        result = (DOTS if DOTS in inputs else "") + "".join(letters)
    return inputs.split(","), result


def axis_names(letters: str, axes: int) -> list[str]:
    """Return a name for each axis of an operand; those of dots are counted from the last one."""
    left, dots, right = letters.partition("...")
    hidden = range(axes - len(left) - len(right), 0, -1) if dots else ()
    return [*left, *(f"{dots}{number}" for number in hidden), *right]
