"""Recipes as YAML, and validation of values, with errors that name file, line and field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from qgait_ptq.config.schema import Recipe
from qgait_ptq.config.validation import describe_problem, shortened
from qgait_ptq.config.yaml_reading import LARGEST_YAML, RefusedYamlError, compose_yaml, dump_yaml, load_yaml
from qgait_ptq.errors import ConfigError, QgaitError
from qgait_ptq.system.reading import read_text, shown

Parsed = TypeVar("Parsed", bound=BaseModel)
OPENGAIT = "opengait_config"
# Sections that receive options before the recipe is validated, outer ones first.
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
        model: class of the configuration.
        values: mapping to validate.
        where: name of the source in errors.
        file: YAML file of the values, for line numbers; None if there is none.

    Raises:
        ConfigError: a value is not valid; the text names line, field, problem and value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        location, problem = describe_problem(model, error)
        line = None if file is None else find_line(file, location)
        position = where if line is None else f"{where}, line {line}"
        raise ConfigError(f"{position}: {problem}") from None


def find_line(path: Path, location: Sequence[int | str]) -> int | None:
    """Return the line, from 1, of a key in a YAML file.

    Args:
        path: path of the file.
        location: keys and list indices, from the top.

    Returns:
        The line; None if the file does not have the key, such as a key from an option.
    """
    try:
        node = compose_yaml(read_text(path, LARGEST_YAML, "the recipe"))
    except (QgaitError, yaml.YAMLError):
        return None  # the file has changed since it was read
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            entries = [(key, value) for key, value in node.value if key.value == str(part)]
            if not entries:
                return None
            (key, node) = entries[-1]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line  # pydantic's location names a kind of value here, not a key
    return line


def read_yaml(path: Path, what: str, *, as_opengait: bool = False) -> Any:
    """Read an untrusted YAML file within the limits of `yaml_reading`.

    Args:
        path: path of the file.
        what: kind of file in errors, such as ``the recipe``.
        as_opengait: whether values are those of YAML 1.1, see `yaml_reading`.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or exceeds a limit; the text names the line.
    """
    text = read_text(path, LARGEST_YAML, what)
    try:
        return load_yaml(text, as_opengait=as_opengait)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = shortened(" ".join(f"{error.context or ''} {error.problem or ''}".split()))
        kind = "" if isinstance(error, RefusedYamlError) else "not valid YAML: "
        raise ConfigError(f"{path}{line}: {kind}{problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file as a mapping of mappings. `parse` validates it after options are merged in.

    Raises:
        ConfigError: the file does not exist, is not a YAML mapping, or a section has the wrong type.
    """
    values = read_yaml(path, "the recipe")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe must be a mapping with the keys model, data and quantization")
    for location in SECTIONS:
        section: Any = values
        for key in location:
            section = section.get(key) or {}
        if not isinstance(section, dict):
            raise ConfigError(f"{_position(path, location)}: expected a mapping, not {shown(section)}")
    config = (values.get("model") or {}).get(OPENGAIT)
    if not isinstance(config, str | None):
        raise ConfigError(f"{_position(path, ('model', OPENGAIT))}: expected a path, not {shown(config)}")
    return values


def _position(path: Path, location: Sequence[str]) -> str:
    line = find_line(path, location)
    return f"{path}{'' if line is None else f', line {line}'}: {'.'.join(location)}"


def recipe_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML text."""
    content = recipe.model_dump(mode="json")
    content["model"]["arguments"] = recipe.model.arguments  # JSON converts integer keys to text
    return dump_yaml(content)
