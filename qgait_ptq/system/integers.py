"""Checks of settings that are integers."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.reading import shown


def check_integer(value: Any, name: str, least: int, most: int | None = None) -> int:
    """Check that a setting is an integer of a range, and return it. Integers of numpy count, bools do not.

    Args:
        value: value of the setting.
        name: name of the setting in errors.
        least: smallest valid value.
        most: largest valid value; None for no limit.

    Raises:
        ConfigError: the value is of another type, or outside the range.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if least <= number and (most is None or number <= most):
            return number
    wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ConfigError(f"{name} is {shown(value)}; it must be an integer {wanted}")
