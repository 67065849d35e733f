"""Recipes as YAML, and values checked against the configuration, with errors that say where."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from qgait_ptq.config.schema import Recipe
from qgait_ptq.config.yaml_reading import LARGEST_YAML, RefusedYamlError, compose_yaml, load_yaml
from qgait_ptq.errors import ConfigError, QgaitError
from qgait_ptq.system.reading import read_text, shown

Parsed = TypeVar("Parsed", bound=BaseModel)
OPENGAIT = "opengait_config"
LONGEST_TEXT = 200  # of a key or a problem in an error
# Sections that options are merged into before the whole is validated, outer ones first.
SECTIONS = (
    ("model",),
    ("model", "arguments"),
    ("data",),
    ("quantization",),
    ("quantization", "idc"),
    ("quantization", "finetune"),
)


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
            message += f", not {shown(first['input'])}"
        field = _shortened(".".join(str(part) for part in location))
        raise ConfigError(f"{place}: {field + ': ' if field else ''}{message}") from None


def find_line(path: Path, location: Sequence[int | str]) -> int | None:
    """Line, from 1, of a key in a YAML file.

    Args:
        path: the file.
        location: keys and positions from the top.

    Returns:
        None where the file does not hold it: it came from elsewhere.
    """
    try:
        node = compose_yaml(read_text(path, LARGEST_YAML, "the recipe"))
    except (QgaitError, yaml.YAMLError):
        return None  # changed since it was read
    line = None
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
    """Read a YAML file that others may have written; see `bounded_yaml` for the limits.

    Args:
        path: the file.
        what: it is, for errors.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is beyond the limits; names the line.
    """
    text = read_text(path, LARGEST_YAML, what)
    try:
        return load_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = _shortened(" ".join(f"{error.context or ''} {error.problem or ''}".split()))
        kind = "" if isinstance(error, RefusedYamlError) else "not YAML: "
        raise ConfigError(f"{path}{line}: {kind}{problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file as a mapping of mappings; `parse` validates it after options have been merged in.

    Raises:
        ConfigError: no such file, not a YAML mapping, or a section of another kind.
    """
    values = read_yaml(path, "the recipe")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with the keys model, data and quantization")
    for location in SECTIONS:
        section: Any = values
        for key in location:
            section = section.get(key) or {}
        if not isinstance(section, dict):
            raise ConfigError(f"{_place(path, location)}: expected a mapping, not {shown(section)}")
    config = (values.get("model") or {}).get(OPENGAIT)
    if not isinstance(config, str | None):
        place = _place(path, ("model", OPENGAIT))
        raise ConfigError(f"{place}: expected a path, not {shown(config)}")
    return values


def _place(path: Path, location: Sequence[str]) -> str:
    line = find_line(path, location)
    return f"{path}{'' if line is None else f', line {line}'}: {'.'.join(location)}"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML text."""
    content = recipe.model_dump(mode="json")
    content["model"]["arguments"] = recipe.model.arguments  # JSON would make text of their whole-number keys
    return yaml.safe_dump(content, sort_keys=False)
