"""``qgait-ptq evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qgait_ptq.cli.grouped import GroupedCommand, refuse_options
from qgait_ptq.cli.options import (
    DATA_OPTIONS,
    DEVICE_OPTION,
    JSON_OPTION,
    MODEL_OPTIONS,
    MODEL_PARAMETERS,
    PATH,
    RECIPE_OPTION,
    WALKER_OPTIONS,
    apply_options,
)
from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.system.json_text import json_text


@click.command(cls=GroupedCommand)
@click.argument("model", type=PATH, required=False)
@apply_options(*DATA_OPTIONS, *WALKER_OPTIONS, *MODEL_OPTIONS, RECIPE_OPTION, DEVICE_OPTION, JSON_OPTION)
def command(model: Path | None, recipe_file: Path | None, device: str, as_json: bool, **options: Any) -> None:
    """Measure rank-1 and mAP of MODEL: a float network, or an ONNX file written by quantize.

    \b
    Examples:
      qgait-ptq evaluate examples/models/gaitbase-small.pt
      qgait-ptq evaluate qgait-out/model.onnx --data CASIA-B --partition CASIA-B.json
    """
    recipe = build_recipe(model, recipe_file, options)
    is_file = recipe.model.path.suffix.lower() == ".onnx"
    if is_file:
        refuse_options(
            (*MODEL_PARAMETERS, "device"), "these options are for a float network, not for an ONNX file"
        )

    from rich.console import Console

    from qgait_ptq.cli.inputs import data_of_file, load_data, load_network, open_to_evaluate
    from qgait_ptq.evaluation.accuracy import evaluate_file, evaluate_network
    from qgait_ptq.report.plain import print_table
    from qgait_ptq.report.terminal import TerminalProgress, evaluation_table

    console = Console(stderr=as_json)
    progress = TerminalProgress(console)
    if is_file:
        embedder, at_once = open_to_evaluate(recipe.model.path)
        data = load_data(data_of_file(recipe.data, embedder), progress)
        accuracy = evaluate_file(embedder, data, progress, at_once)
    else:
        network, _ = load_network(recipe.model, progress)
        data = load_data(recipe.data, progress)
        accuracy = evaluate_network(network, data, device, recipe.model.frames, recipe.model.output, progress)
    if as_json:
        click.echo(json_text(accuracy.to_report()))
    else:
        print_table(console, evaluation_table(accuracy.to_report(), data.description))
