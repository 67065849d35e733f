"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from qgait_ptq.cli.grouped import count, option
from qgait_ptq.config.schema import (
    PROTOCOL_NAMES,
    ActivationObserver,
    Metric,
    WeightObserver,
)
from qgait_ptq.targets.profiles import target_names

Command = Callable[..., Any]

NETWORK, DATA, WIDTHS, GOALS = "Network", "Data", "Widths and target", "Choosing widths for each layer"
CALIBRATION, RUN, FILES = "Calibration", "Run", "Output"
PATH = click.Path(path_type=Path)
BITS = click.IntRange(2, 8)


def _bits(name: str, default_text: str, help_text: str) -> Callable[[Command], Command]:
    """Decorate a command with an option that is a width."""
    return option(name, group=WIDTHS, type=BITS, metavar="BITS", default_text=default_text, help=help_text)


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
        "--checkpoint-key",
        group=NETWORK,
        metavar="KEY",
        default_text="the usual key, or the only weights that fit",
        help="Where the weights are in a training checkpoint: a dotted path, such as 'state_dict_ema'.",
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
    count("--frames", "Frame count, for networks that accept only one.", NETWORK),
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
MODEL_PARAMETERS = (  # --trust-code is not among them: a recipe can need it
    "factory",
    "arguments",
    "checkpoint_key",
    "opengait_config",
    "adapter",
    "frames",
    "output",
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
        help="Distance between embeddings, for ranking and for training.",
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
WALKER_OPTIONS = (
    option(
        "--test-walkers",
        group=DATA,
        type=click.IntRange(2, 10_000),
        metavar="NUMBER",
        default_text="20",
        help="Number of synthetic walkers to test on. Fewer are faster, and give coarser figures.",
    ),
    option(
        "--cache/--no-cache",
        group=DATA,
        default=None,
        default_text="on",
        help="Keep rendered walkers in $XDG_CACHE_HOME/qgait_ptq for later runs.",
    ),
)
UNLABELLED_OPTION = option(
    "--unlabelled",
    group=DATA,
    type=PATH,
    metavar="FOLDER",
    help="More sequences for --finetune, in the same layout; their labels are not read.",
)
TARGET_OPTION = option(
    "--target",
    group=WIDTHS,
    type=click.Choice(target_names()),
    default_text="onnxruntime",
    help="Target to write the file for.",
)
WIDTH_OPTIONS = (
    _bits("--bits", "8", "Bits of weights and activations."),
    _bits("--weight-bits", "--bits", "Bits of weights."),
    _bits("--activation-bits", "--bits", "Bits of activations."),
    _bits("--edge-bits", "8", "Bits in layers that read the input and in the last layer."),
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
    TARGET_OPTION,
    option(
        "--weight-range",
        group=WIDTHS,
        type=click.Choice(["safe", "full"]),
        default_text="safe",
        help="safe: same integers on every processor. full: for processors with VNNI and for ARM only.",
    ),
    option(
        "--input-type",
        group=WIDTHS,
        type=click.Choice(["uint8", "float32"]),
        default_text="uint8",
        help="Input of the file: uint8 in 0..255, or float32 in [0, 1].",
    ),
)
WIDTH_PARAMETERS = (
    "bits",
    "weight_bits",
    "activation_bits",
    "edge_bits",
    "input_bits",
    "include",
    "exclude",
    "target",
    "weight_range",
    "input_type",
)
GOAL_OPTIONS = (
    option(
        "--budget",
        group=GOALS,
        metavar="size=MB|bops=%",
        help="Limit of the file size (size=0.5MB) or of bit operations (bops=30%, in percent of 8 bits).",
    ),
    option(
        "--target-accuracy",
        group=GOALS,
        type=float,
        metavar="POINTS",
        help="Choose the smallest file whose held-out rank-1 changes by POINTS or more, such as -0.3.",
    ),
    option(
        "--max-drop",
        group=GOALS,
        type=float,
        metavar="POINTS",
        help="Raise widths until held-out rank-1 drops by at most POINTS.",
    ),
)
SEED_OPTION = option(
    "--seed",
    group=CALIBRATION,
    type=click.IntRange(min=0),
    default_text="0",
    help="Random seed for choosing calibration sequences.",
)
CALIBRATION_OPTIONS = (
    option(
        "--effort",
        group=CALIBRATION,
        type=click.Choice(["quick", "standard", "thorough"]),
        default_text="standard",
        help="quick: corrections without training. standard: with IDC. thorough: with IDC and fine-tuning.",
    ),
    count("--calibration-sequences", "Number of calibration sequences.", CALIBRATION, default_text="128"),
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
        default_text="on if 8 identities have 2 sequences each",
        help="Stage 1: calibrate ranges by distances between people (IDC).",
    ),
    option(
        "--finetune/--no-finetune",
        group=CALIBRATION,
        default=None,
        default_text="off",
        help="Stage 2: reconstruct and fine-tune weights.",
    ),
    option("--resume", group=CALIBRATION, is_flag=True, help="Continue an interrupted fine-tuning."),
    SEED_OPTION,
)
EVALUATION_OPTION = option(
    "--evaluate-simulation",
    group=RUN,
    is_flag=True,
    default=None,
    help="Evaluate the simulation on all test sequences too, not only on a sample.",
)
RECIPE_OPTION = option(
    "--recipe",
    "recipe_file",
    group=RUN,
    type=PATH,
    help="YAML file with all settings. Options override its values.",
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
    """Return a decorator that adds options to a command, in the order of the help."""

    def decorate(command: Command) -> Command:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate
