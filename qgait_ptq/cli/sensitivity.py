"""``qgait-ptq sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qgait_ptq.cli.grouped import GroupedCommand, option
from qgait_ptq.cli.options import (
    DATA_OPTIONS,
    DEVICE_OPTION,
    FILES,
    JSON_OPTION,
    MODEL_OPTIONS,
    PATH,
    RECIPE_OPTION,
    RUN,
    SEED_OPTION,
    TARGET_OPTION,
    WALKER_OPTIONS,
    apply_options,
)
from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.system.json_text import json_text

MEASUREMENT = "Measurement"  # heading of options


class Widths(click.ParamType[tuple[int, ...]]):
    """Parameter type for a list of widths, such as ``2,4,8``."""

    name = "widths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the widths in ascending order, each from 2 to 8 bits."""
        if isinstance(value, tuple):
            return value
        try:
            widths = tuple(sorted({int(part) for part in str(value).split(",")}))
        except ValueError:
            widths = ()
        if not widths or not all(2 <= bits <= 8 for bits in widths):
            self.fail(f"{value!r} is not a list of widths from 2 to 8 bits, such as 2,4,8", param, ctx)
        return widths


@click.command(cls=GroupedCommand)
@click.argument("model", type=PATH, required=False)
@apply_options(
    option(
        "--widths",
        group=MEASUREMENT,
        type=Widths(),
        default="2,3,4,6,8",
        show_default=True,
        help="Widths to measure, in bits.",
    ),
    option(
        "--sequences",
        group=MEASUREMENT,
        type=click.IntRange(min=2),
        default=64,
        show_default=True,
        help="Number of calibration sequences to measure on.",
    ),
    TARGET_OPTION,
    SEED_OPTION,
    *DATA_OPTIONS,
    *WALKER_OPTIONS,
    *MODEL_OPTIONS,
    RECIPE_OPTION,
    DEVICE_OPTION,
    option(
        "--resume",
        group=RUN,
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Folder for intermediate states. Continue from states that it contains.",
    ),
    option(
        "--plot",
        group=FILES,
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write the table as an SVG figure.",
    ),
    JSON_OPTION,
)
def command(
    model: Path | None,
    recipe_file: Path | None,
    widths: tuple[int, ...],
    sequences: int,
    device: str,
    plot: Path | None,
    resume: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the sensitivity of each layer: quantize one weight or one input alone.

    The table shows the change of distances between people in percent, worst first. The JSON output also
    has the drop of rank-1 in points.

    \b
    Example:
      qgait-ptq sensitivity examples/models/gaitbase-small.pt --widths 2,4,8 --plot sensitivity.svg
    """
    recipe = build_recipe(model, recipe_file, options)

    from rich.console import Console

    from qgait_ptq.cli.inputs import load_data, load_network
    from qgait_ptq.errors import ConfigError
    from qgait_ptq.mixed_precision.damage_table import SensitivityMeasurement, describe_sensitivity
    from qgait_ptq.mixed_precision.groups import Kind
    from qgait_ptq.pipeline.preparing import CaptureNetwork, ToDevice
    from qgait_ptq.pipeline.quantize import begin
    from qgait_ptq.report.drawing import standalone
    from qgait_ptq.report.plain import print_table
    from qgait_ptq.report.plots import sensitivity_figure
    from qgait_ptq.report.terminal import TerminalProgress, sensitivity_table
    from qgait_ptq.report.writing import check_writable, write_text
    from qgait_ptq.stages.stage import run_stages
    from qgait_ptq.stages.state import Source
    from qgait_ptq.system.exchanging import first_only, in_first
    from qgait_ptq.system.locking import locked
    from qgait_ptq.system.processes import processes

    if plot is not None and not plot.parent.is_dir():  # checked before minutes of measuring
        raise ConfigError(f"{plot.parent}: the folder does not exist; create it, or pass another --plot")
    if recipe.model.submodule is not None:
        raise ConfigError(
            f"{recipe.model.submodule}: sensitivity needs embeddings, but a submodule gives none; "
            "remove 'submodule' from the recipe"
        )
    click.get_current_context().with_resource(in_first(locked(resume, plot)))
    if resume is not None:
        folder = resume
        first_only(lambda: check_writable(folder, ()))
    console = Console(stderr=as_json)
    progress = TerminalProgress(console)
    network, _ = load_network(recipe.model, progress)
    data = load_data(recipe.data, progress)
    source = Source(network, recipe.model.frames, recipe.model.output)
    state = begin(source, data, recipe.quantization, device=device, work_folder=resume, resume=True)
    state = run_stages((CaptureNetwork(), ToDevice()), state, progress)
    inputs, notes = input_widths(widths, state.target.storage.narrowest_activations, state.target.name)
    for text in notes:
        progress.note(text)
    measurement = SensitivityMeasurement(state, progress, sequences)
    sensitivity = measurement.measure({Kind.WEIGHTS: widths, Kind.ACTIVATIONS: inputs})
    for text in sensitivity.notes:
        progress.note(text)
    entries = describe_sensitivity(sensitivity)
    if plot is not None and processes().first:
        write_text(plot, standalone(sensitivity_figure(entries)))
    if as_json:
        click.echo(json_text(entries))
        return
    print_table(console, sensitivity_table(entries))
    if plot is not None:
        progress.note(f"drew {plot}")


def input_widths(widths: tuple[int, ...], narrowest: int, target: str) -> tuple[tuple[int, ...], list[str]]:
    """Return the widths at which inputs are measured, and a note if they are not those asked for.

    Args:
        widths: widths that were asked for.
        narrowest: smallest width of inputs that the target takes.
        target: name of the target.
    """
    inputs = tuple(bits for bits in widths if bits >= narrowest) or (narrowest,)
    if inputs == widths:
        return inputs, []
    measured = ", ".join(map(str, inputs))
    return inputs, [
        f"inputs are measured at {measured} bits: the target {target} takes no fewer than {narrowest}"
    ]
