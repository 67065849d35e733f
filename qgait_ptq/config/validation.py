"""The base of all settings, and one-line errors for values that are not valid."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.reading import shown

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # it has no public name

LONGEST_TEXT = 200  # characters of a key or a problem in an error


class _ReportingErrors(ModelMetaclass):
    """Reports settings that are not valid as a `ConfigError`, when a user calls the class.

    `model_validate` does not call the class, so that `recipes.parse` can add the line of a file.
    """

    def __call__(self, *args: Any, **values: Any) -> Any:
        """Make settings.

        Raises:
            ConfigError: a value is not valid; the text names field, problem and value.
        """
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            _, problem = describe_problem(self, error)
            raise ConfigError(f"{self.__name__}: {problem}") from None


class Settings(BaseModel, metaclass=_ReportingErrors):
    """Base of settings. They are immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is expected: pydantic would take them for 1 and 0."""
        field = cls.model_fields[info.field_name or ""]
        for entry in value if isinstance(value, list | tuple) else [value]:
            if isinstance(entry, bool) and not _takes_flags(field.annotation):
                hint = _switch(field.annotation)
                raise ValueError(f"expected another value than {str(entry).lower()}{hint}")
        return value


def describe_problem(model: type[Any], error: ValidationError) -> tuple[tuple[int | str, ...], str]:
    """Return the place of the first problem, and a line with its field, the problem and the value.

    Args:
        model: class of the settings.
        error: error of pydantic.
    """
    first = error.errors()[0]
    location, message = first["loc"], first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_nearest(model, location)}"
    elif first["type"] not in ("missing", "value_error"):
        message += f", not {shown(first['input'])}"
    field = shortened(".".join(str(part) for part in location))
    return location, f"{field + ': ' if field else ''}{message}"


def shortened(text: str) -> str:
    """Return a text with at most `LONGEST_TEXT` characters."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _nearest(model: type[Any], location: Sequence[int | str]) -> str:
    """Return a hint with the keys of a section that are similar to an unknown key."""
    section: Any = model
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(str(part))
        section = None if field is None else field.annotation
    names = list(getattr(section, "model_fields", {}))
    near = get_close_matches(str(location[-1]), names, n=2)
    return (
        f"; did you mean {' or '.join(near)}?"
        if near
        else f"; known keys are {', '.join(names)}"
        if names
        else ""
    )


def _switch(annotation: Any) -> str:
    """Return a hint how to switch a section on or off; empty for other fields."""
    fields = getattr(annotation, "model_fields", {})
    return "; set `enabled` in this section to true or false" if "enabled" in fields else ""


def _takes_flags(annotation: Any) -> bool:
    """Return whether a type allows true and false."""
    return annotation in (bool, Any) or any(map(_takes_flags, get_args(annotation)))
