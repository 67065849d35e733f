"""Recipes as YAML, and values checked against the configuration, with errors that say where."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from qgait_ptq.config import Recipe
from qgait_ptq.errors import ConfigError

Parsed = TypeVar("Parsed", bound=BaseModel)


def parse(model: type[Parsed], values: Any, where: str, file: Path | None = None) -> Parsed:
    """Validate values as a configuration.

    Args:
        model: which one.
        values: a mapping.
        where: named in errors.
        file: YAML that the values came from, for the line; None where there is none.

    Raises:
        ConfigError: names the line and the field, what is wrong with it, and what was given.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        location, message = first["loc"], first["msg"].removeprefix("Value error, ")
        line = None if file is None else find_line(file, location)
        place = where if line is None else f"{where}, line {line}"
        if first["type"] == "extra_forbidden":
            message = f"no such key{_nearest(model, location)}"
        elif first["type"] not in ("missing", "value_error"):
            message += f", not {first['input']!r}"
        field = ".".join(str(part) for part in location)
        raise ConfigError(f"{place}: {field + ': ' if field else ''}{message}") from None


def find_line(path: Path, location: Sequence[int | str]) -> int | None:
    """Line, from 1, of a key in a YAML file.

    Args:
        path: the file.
        location: keys and positions from the top.

    Returns:
        None where the file does not hold it: it came from elsewhere.
    """
    node, line = yaml.compose(path.read_text()), None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                return None
            (key, node) = found[-1]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line  # a part of what is wrong with this value, not a key
    return line


def _nearest(model: type[BaseModel], location: Sequence[int | str]) -> str:
    """Keys of the section that look like the one that was given."""
    section: Any = model
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(str(part))
        section = None if field is None else field.annotation
    names = list(getattr(section, "model_fields", {}))
    near = get_close_matches(str(location[-1]), names, n=2)
    return (
        f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(names)}" if names else ""
    )


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        what: it is, for errors.

    Raises:
        ConfigError: it cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {what} cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file as a mapping; `parse` validates it after options have been merged in.

    Raises:
        ConfigError: no such file, or not a YAML mapping.
    """
    values = read_yaml(path, "the recipe")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with the keys model, data and quantization")
    return values


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML text."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
