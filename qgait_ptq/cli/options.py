"""Options that several commands share, and how they become a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from qgait_ptq.cli.grouped import option
from qgait_ptq.config.recipes import parse, read_recipe
from qgait_ptq.config.schema import (
    PROTOCOL_NAMES,
    TARGET_NAMES,
    ActivationObserver,
    DataSource,
    Metric,
    ModelSource,
    Recipe,
    WeightObserver,
)
from qgait_ptq.errors import ConfigError

Command = Callable[..., Any]
ZOO, OPENGAIT_ADAPTER = "qgait_ptq.gait.zoo", "opengait"

NETWORK, DATA, WIDTHS, GOALS = "Network", "Data", "Widths and target", "Choosing widths for each layer"
CALIBRATION, RUN, FILES = "Calibration", "Run", "Output"
PATH = click.Path(path_type=Path)
BITS = click.IntRange(2, 8)

MODEL_OPTIONS = (
    option(
        "--factory",
        group=NETWORK,
        former=("--model",),
        metavar="MODULE:CALLABLE",
        help="Function or class that creates the network, for files with weights only.",
    ),
    option(
        "--model-argument",
        "arguments",
        group=NETWORK,
        metavar="NAME=VALUE",
        multiple=True,
        help="Keyword argument of the factory, as YAML. Can be repeated.",
    ),
    option(
        "--opengait-config",
        group=NETWORK,
        type=PATH,
        metavar="YAML",
        help="OpenGait configuration to create the network from.",
    ),
    option(
        "--adapter",
        group=NETWORK,
        metavar="NAME",
        help="Module that wraps the network: 'opengait' or MODULE:CLASS.",
    ),
    option(
        "--frames",
        group=NETWORK,
        type=click.IntRange(min=1),
        metavar="NUMBER",
        help="Fixed frame count, for networks that accept only one.",
    ),
    option(
        "--output",
        group=NETWORK,
        metavar="NAME",
        help="Name of the embedding, for networks with several outputs, such as 'features.0'.",
    ),
    option(
        "--trust-code",
        group=NETWORK,
        former=("--trust-pickle",),
        is_flag=True,
        default=None,
        help="Run code from the model file (exported program, pickled module) or named in a recipe.",
    ),
)
SUBMODULE_OPTION = option(
    "--capture-submodule",
    "submodule",
    group=NETWORK,
    metavar="NAME",
    help="Quantize this module only, such as 'Backbone', and keep the rest in float.",
)
DATA_OPTIONS = (
    option(
        "--data",
        "root",
        group=DATA,
        type=PATH,
        default_text="synthetic walkers",
        help="Root folder of a data set in the OpenGait layout.",
    ),
    option("--partition", group=DATA, type=PATH, default_text="ROOT/partition.json", help="Partition file."),
    option(
        "--protocol",
        group=DATA,
        type=click.Choice(PROTOCOL_NAMES),
        default_text="casia-b",
        help="Evaluation protocol.",
    ),
    option(
        "--metric",
        group=DATA,
        type=click.Choice(get_args(Metric)),
        default_text="euclidean",
        help="Distance between embeddings.",
    ),
    option(
        "--raw",
        group=DATA,
        is_flag=True,
        default=None,
        help="Read arrays as they are, such as poses, instead of silhouettes.",
    ),
    option(
        "--modality",
        group=DATA,
        type=click.IntRange(min=0),
        multiple=True,
        metavar="NUMBER",
        default_text="0",
        help="Index of the array file in each folder. Repeat it for networks with several inputs.",
    ),
    option(
        "--cut-columns",
        group=DATA,
        type=click.IntRange(min=0),
        metavar="NUMBER",
        default_text="empty columns of square frames",
        help="Columns to cut from each side of a frame.",
    ),
)
WIDTH_OPTIONS = (
    option(
        "--bits",
        group=WIDTHS,
        type=BITS,
        metavar="BITS",
        default_text="8",
        help="Bits of weights and activations.",
    ),
    option(
        "--weight-bits",
        group=WIDTHS,
        type=BITS,
        metavar="BITS",
        default_text="--bits",
        help="Bits of weights.",
    ),
    option(
        "--activation-bits",
        group=WIDTHS,
        type=BITS,
        metavar="BITS",
        default_text="--bits",
        help="Bits of activations.",
    ),
    option(
        "--edge-bits",
        group=WIDTHS,
        type=BITS,
        metavar="BITS",
        default_text="8",
        help="Bits in layers that read the input and in the last layer.",
    ),
    option(
        "--input-bits",
        group=WIDTHS,
        type=click.IntRange(1, 8),
        metavar="BITS",
        help="Bits of the input. With 1, silhouettes are thresholded at half.",
    ),
    option(
        "--include",
        group=WIDTHS,
        metavar="PATTERN",
        multiple=True,
        help="Quantize only these layers. Can be repeated.",
    ),
    option(
        "--exclude",
        group=WIDTHS,
        metavar="PATTERN",
        multiple=True,
        help="Keep layers in float: module paths ('blocks.3', '*.conv2') or 'operator:conv3d'.",
    ),
    option(
        "--target",
        group=WIDTHS,
        type=click.Choice(TARGET_NAMES),
        default_text="onnxruntime",
        help="Runtime to write the file for.",
    ),
    option(
        "--weight-range",
        group=WIDTHS,
        type=click.Choice(["safe", "full"]),
        default_text="safe",
        help="safe: the same integers on every processor. full: for processors with VNNI and for ARM only.",
    ),
    option(
        "--input-type",
        group=WIDTHS,
        type=click.Choice(["uint8", "float32"]),
        default_text="uint8",
        help="Input of the file: uint8 in 0..255, or float32 in [0, 1].",
    ),
)
GOAL_OPTIONS = (
    option(
        "--budget",
        group=GOALS,
        metavar="size=MB|bops=%",
        help="Budget of the file size (size=0.5MB) or of the bit operations (bops=30% of 8 bits).",
    ),
    option(
        "--target-accuracy",
        group=GOALS,
        type=float,
        metavar="POINTS",
        help="Smallest file whose held-out rank-1 changes by at least this: -0.3.",
    ),
    option(
        "--max-drop",
        group=GOALS,
        type=float,
        metavar="POINTS",
        help="Raise widths until held-out rank-1 drops by at most this.",
    ),
)
CALIBRATION_OPTIONS = (
    option(
        "--calibration-sequences",
        group=CALIBRATION,
        type=click.IntRange(min=1),
        metavar="NUMBER",
        default_text="128",
        help="Number of calibration sequences.",
    ),
    option(
        "--observer",
        group=CALIBRATION,
        type=click.Choice(get_args(ActivationObserver)),
        default_text="mse",
        help="Observer of activations.",
    ),
    option(
        "--weight-observer",
        group=CALIBRATION,
        type=click.Choice(get_args(WeightObserver)),
        default_text="mse",
        help="Observer of weights.",
    ),
    option(
        "--idc/--no-idc",
        group=CALIBRATION,
        default=None,
        default_text="with 8 identities that have 2 sequences",
        help="Stage 1: calibrate ranges by distances between people.",
    ),
    option(
        "--finetune/--no-finetune",
        group=CALIBRATION,
        default=None,
        default_text="off",
        help="Stage 2: reconstruct and fine-tune weights.",
    ),
    option("--resume", group=CALIBRATION, is_flag=True, help="Continue an interrupted fine-tuning."),
    option(
        "--seed",
        group=CALIBRATION,
        type=int,
        default_text="0",
        help="Random seed for choosing calibration sequences.",
    ),
)
RECIPE_OPTION = option(
    "--recipe",
    "recipe_file",
    group=RUN,
    type=PATH,
    help="YAML file with all settings. Options override it.",
)
DEVICE_OPTION = option(
    "--device",
    group=RUN,
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device for the networks. auto uses a GPU if there is one.",
)
JSON_OPTION = option("--json", "as_json", group=FILES, is_flag=True, help="Print JSON instead of a table.")
RUNTIME_OPTION = option(
    "--runtime",
    group=RUN,
    type=click.Choice(["onnxruntime", "openvino"]),
    default="onnxruntime",
    show_default=True,
    help="Runtime to run the file in.",
)


def apply_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Decorate a command with options, in the order in which help shows them."""

    def decorate(command: Command) -> Command:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


def build_recipe(model: Path | None, recipe_file: Path | None, options: dict[str, Any]) -> Recipe:
    """Merge a recipe file and options into a validated recipe; options win.

    Raises:
        ConfigError: names the option or the field that is wrong.
    """
    values: dict[str, Any] = read_recipe(recipe_file) if recipe_file else {}
    for section in ("model", "data", "quantization"):
        values[section] = _section_of(values, section, recipe_file)
    if recipe_file is not None:
        _check_trust(values["model"], options, recipe_file)
    if model is not None:
        if values["model"].get("path") != str(model):
            values["model"].pop("sha256", None)
        values["model"]["path"] = str(model)
    _switch(values["quantization"], "idc", options.pop("idc", None))
    _switch(values["quantization"], "finetune", options.pop("finetune", None))
    if options.get("budget") is not None:
        options["budget"] = _parse_budget(options["budget"])
    bits = options.pop("bits", None)
    for name in ("weight_bits", "activation_bits"):
        options[name] = options.get(name) if options.get(name) is not None else bits
    for name, value in options.items():
        if value is not None and value != ():
            values[_section(name)][name] = value
    _default_from_opengait(values)
    values["model"]["arguments"] = _arguments(values["model"].get("arguments") or {})
    return parse(Recipe, values, str(recipe_file or "options"), recipe_file)


def _section_of(values: dict[str, Any], section: str, recipe_file: Path | None) -> dict[str, Any]:
    """A section of a recipe file as a mapping of its own."""
    found = values.get(section) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{recipe_file}: {section} is a mapping, not {type(found).__name__}")
    return dict(found)


def _check_trust(model: dict[str, Any], options: dict[str, Any], recipe_file: Path) -> None:
    """Refuse a recipe that would run code, unless the command line trusts it or names the code itself.

    Trust is never taken from a file: what it says of trust is dropped.

    Raises:
        ConfigError: names what the recipe asks for, and the option that allows it.
    """
    recorded = [name for name in ("trust_code", "trust_pickle") if model.pop(name, None)]
    if options.get("trust_code"):
        return
    named = {
        name: str(model[name])
        for name in ("factory", "adapter", "opengait_config")
        if model.get(name) and options.get(name) is None and not is_built_in(name, model[name])
    }
    if recorded and not any(options.get(name) for name in ("factory", "opengait_config")):
        named["trust_code"] = "true"
    if named:
        listed = ", ".join(f"{name}: {value}" for name, value in named.items())
        raise ConfigError(
            f"{recipe_file}: the recipe runs code that it names ({listed}). If you trust it, add "
            "--trust-code; a recipe cannot grant that itself"
        )


def is_built_in(setting: str, name: Any) -> bool:
    """Whether a factory or an adapter is this package's own, so that nothing else is imported."""
    if setting == "adapter":
        return name == OPENGAIT_ADAPTER
    place, _, attribute = str(name).partition(":")
    if setting != "factory" or place != ZOO:
        return False
    from qgait_ptq.gait import zoo  # here: torch takes long to import, and most calls need none of it

    return attribute in zoo.__all__


def _default_from_opengait(values: dict[str, Any]) -> None:
    """What an OpenGait configuration says of data and frames, where nothing else is said."""
    path = values["model"].get("opengait_config")
    if path is None:
        return
    from qgait_ptq.gait.opengait.configuration import read_opengait_config

    config = read_opengait_config(Path(path))
    for name, value in config.data.items():
        values["data"].setdefault(name, value)
    if config.frames is not None:
        values["model"].setdefault("frames", config.frames)


def _parse_budget(text: str) -> dict[str, float]:
    """``size=0.6MB`` or ``bops=40%``."""
    for name, unit, key in (("size", "MB", "size_mb"), ("bops", "%", "bops_percent")):
        kind, equals, value = text.replace(" ", "").partition("=")
        if kind == name and equals and value.upper().endswith(unit):
            try:
                return {key: float(value[: -len(unit)])}
            except ValueError:
                break
    raise click.BadParameter(f"{text!r} is neither size=0.6MB nor bops=40%", param_hint="--budget")


def _switch(quantization: dict[str, Any], stage: str, enabled: bool | None) -> None:
    """Turn a stage on or off; its other settings stay as the recipe has them."""
    if enabled is not None:
        quantization[stage] = {**(quantization.get(stage) or {}), "enabled": enabled}


def _section(option: str) -> str:
    if option in ModelSource.model_fields:
        return "model"
    return "data" if option in DataSource.model_fields else "quantization"


def _arguments(given: Any) -> dict[str, Any]:
    """``name=value`` options as a dictionary."""
    if isinstance(given, dict):
        return given
    import yaml

    from qgait_ptq.config.yaml_reading import load_yaml

    arguments = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise click.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="--model-argument")
        try:
            arguments[name] = load_yaml(value)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "no YAML value"
            raise click.BadParameter(f"{item!r}: {problem}", param_hint="--model-argument") from None
    return arguments
