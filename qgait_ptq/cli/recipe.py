"""Options of the command line, merged with a recipe file into a validated recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from qgait_ptq.capture.own_code import CODE, is_built_in
from qgait_ptq.config.goals import FIXED, describe_choice, unused_widths
from qgait_ptq.config.recipes import parse, read_recipe
from qgait_ptq.config.schema import GOALS, DataSource, ModelSource, QuantConfig, Recipe
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.data.names import printable

WIDTHS = ("weight_bits", "activation_bits")  # that --bits sets
# What each effort turns on (None: if the labels allow it). Other settings keep the values of the recipe.
EFFORTS: dict[str | None, dict[str, bool | None]] = {
    "quick": {"idc": False, "finetune": False},
    "standard": {"idc": None, "finetune": False},
    "thorough": {"idc": None, "finetune": True},
}


def build_recipe(model: Path | None, recipe_file: Path | None, options: dict[str, Any]) -> Recipe:
    """Merge a recipe file and options into a validated recipe. Options override the file.

    Raises:
        ConfigError: an option or a field is wrong; the text names it.
    """
    values: dict[str, Any] = read_recipe(recipe_file) if recipe_file else {}
    for section in ("model", "data", "quantization"):
        values[section] = _section_of(values, section, recipe_file)
    if recipe_file is not None:
        _check_trust(values["model"], options, recipe_file)
    if model is not None:
        values["model"].pop("sha256", None)
        values["model"]["path"] = str(model)
    effort = EFFORTS.get(options.pop("effort", None), {})
    for stage in ("idc", "finetune"):
        given = options.pop(stage, None)
        enabled = given if given is not None else effort.get(stage)
        if enabled is not None or stage in effort:
            values["quantization"][stage] = {**(values["quantization"].get(stage) or {}), "enabled": enabled}
    if options.get("budget") is not None:
        options["budget"] = _parse_budget(options["budget"])
    if any(options.get(goal) is not None for goal in GOALS):  # an option replaces the goal of the recipe
        for goal in GOALS:
            values["quantization"].pop(goal, None)
    given = _arguments(options.pop("arguments", None) or ())
    values["model"]["arguments"] = {**(values["model"].get("arguments") or {}), **given}
    bits = options.pop("bits", None)
    asked = {name for name in (*WIDTHS, "edge_bits") if options.get(name) is not None}
    for name in WIDTHS:
        options[name] = options.get(name) if options.get(name) is not None else bits
    for name, value in options.items():
        if value is not None and value != ():
            values[_section(name)][name] = value
    _default_from_opengait(values)
    recipe = parse(Recipe, values, str(recipe_file or "options"), recipe_file)
    _check_widths(recipe.quantization, asked, bits)
    data = recipe.data
    for path in (recipe.model.path, recipe.model.opengait_config, data.root, data.partition, data.unlabelled):
        if path is not None and printable(str(path)) != str(path):
            raise ConfigError(f"{path}: the path is not UTF-8, so no report can name it; rename it")
    return recipe


def _check_widths(config: QuantConfig, asked: set[str], bits: int | None) -> None:
    """Refuse options of widths that the goal overrides. A recipe may hold them: the run notes them.

    Args:
        config: settings with all options.
        asked: options of single widths that the command line gives, such as ``weight_bits``.
        bits: value of ``--bits``, None if it is not given.

    Raises:
        ConfigError: an option has no effect.
    """
    unused = unused_widths(config)
    useless = [name for name in unused if name in asked]
    if bits is not None and asked.union(unused).issuperset(WIDTHS):
        useless.append("bits")
    if useless:
        names = " and ".join("--" + name.replace("_", "-") for name in useless)
        raise ConfigError(
            f"{names} would have no effect: {describe_choice(config)}. Leave out the option or the goal. "
            f"{FIXED}"
        )


def _section_of(values: dict[str, Any], section: str, recipe_file: Path | None) -> dict[str, Any]:
    """Return a copy of a section of a recipe file."""
    content = values.get(section) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{recipe_file}: {section} must be a mapping, not {type(content).__name__}")
    return dict(content)


def _check_trust(model: dict[str, Any], options: dict[str, Any], recipe_file: Path) -> None:
    """Refuse a recipe that would run code, unless the command line trusts it or names the code itself.

    A recipe cannot grant trust: its entries about trust are dropped.

    Raises:
        ConfigError: the recipe names code; the text lists it and the option that allows it.
    """
    recorded = [name for name in ("trust_code", "trust_pickle") if model.pop(name, None)]
    if options.get("trust_code"):
        return
    named = {
        name: str(model[name])
        for name in CODE
        if model.get(name) and options.get(name) is None and not is_built_in(name, model[name])
    }
    if recorded and not any(options.get(name) for name in ("factory", "opengait_config")):
        named["trust_code"] = "true"
    if named:
        listed = ", ".join(f"{name}: {value}" for name, value in named.items())
        raise ConfigError(
            f"{recipe_file}: the recipe runs code that it names ({listed}). If you trust the code, add "
            "--trust-code; a recipe cannot grant that itself"
        )


def _default_from_opengait(values: dict[str, Any]) -> None:
    """Fill in settings of data and frames that are not given from an OpenGait configuration."""
    path = values["model"].get("opengait_config")
    if path is None:
        return
    from qgait_ptq.gait.opengait.configuration import read_opengait_config

    config = read_opengait_config(Path(path))
    if values["data"].get("root") is not None:  # the built-in walkers have no other protocol or length
        for name, value in config.data.items():
            values["data"].setdefault(name, value)
    if config.frames is not None:
        values["model"].setdefault("frames", config.frames)


def _parse_budget(text: str) -> dict[str, float]:
    """Parse ``size=0.6MB`` or ``bops=40%``."""
    for name, unit, key in (("size", "MB", "size_mb"), ("bops", "%", "bops_percent")):
        kind, equals, value = text.replace(" ", "").partition("=")
        if kind == name and equals and value.upper().endswith(unit):
            try:
                return {key: float(value[: -len(unit)])}
            except ValueError:
                break
    raise click.BadParameter(
        f"{text!r} is not a budget such as size=0.6MB or bops=40%", param_hint="--budget"
    )


def _section(option: str) -> str:
    if option in ModelSource.model_fields:
        return "model"
    return "data" if option in DataSource.model_fields else "quantization"


def _arguments(items: Iterable[str]) -> dict[str, Any]:
    """Return ``name=value`` options as a dictionary."""
    import yaml

    from qgait_ptq.config.yaml_reading import load_yaml

    arguments = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise click.BadParameter(
                f"{item!r} does not have the form NAME=VALUE", param_hint="--model-argument"
            )
        try:
            arguments[name] = load_yaml(value)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "the value is not valid YAML"
            raise click.BadParameter(f"{item!r}: {problem}", param_hint="--model-argument") from None
    return arguments
