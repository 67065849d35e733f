"""``qgait-ptq inspect``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgait_ptq.cli.grouped import GroupedCommand, option, refuse_options
from qgait_ptq.cli.options import (
    FILES,
    JSON_OPTION,
    MODEL_OPTIONS,
    PATH,
    RECIPE_OPTION,
    SUBMODULE_OPTION,
    WIDTH_OPTIONS,
    WIDTH_PARAMETERS,
    apply_options,
)
from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.system.json_text import json_text

if TYPE_CHECKING:
    from qgait_ptq.config.schema import DataSource, Recipe
    from qgait_ptq.graph.frame_layout import FrameLayout

COMPARED_SEQUENCES = 24
INPUT = "Input"  # heading of options


@click.command(cls=GroupedCommand)
@click.argument("model", type=PATH, required=False)
@apply_options(
    *WIDTH_OPTIONS,
    option(
        "--height",
        group=INPUT,
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="Height of the silhouettes.",
    ),
    option(
        "--width",
        group=INPUT,
        type=click.IntRange(min=1),
        default_text="HEIGHT minus the columns that are cut from data",
        help="Width of the silhouettes.",
    ),
    option(
        "--channels",
        group=INPUT,
        type=click.IntRange(min=1),
        help="Channels of a frame, for networks that take [n, s, c, h, w].",
    ),
    option(
        "--input",
        "inputs",
        group=INPUT,
        multiple=True,
        metavar="SHAPE[:integers]",
        help="Frame shape of each input, in order, for networks with several: --input 64x44 --input 85. "
        "'scalar' is one number per frame.",
    ),
    *MODEL_OPTIONS,
    SUBMODULE_OPTION,
    RECIPE_OPTION,
    option(
        "--against",
        group=FILES,
        type=PATH,
        metavar="DIR",
        help="Result folder of quantize. List the error of each layer, worst first.",
    ),
    JSON_OPTION,
)
def command(
    model: Path | None,
    recipe_file: Path | None,
    height: int,
    width: int | None,
    channels: int | None,
    inputs: tuple[str, ...],
    against: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """List the layers of MODEL: shapes, MACs, parameters and planned quantization.

    With --against, list the errors of the layers of a result instead.

    \b
    Examples:
      qgait-ptq inspect examples/models/gaitbase-small.pt --bits 4
      qgait-ptq inspect --against qgait-out
    """
    if against is not None:
        refuse_options(
            (*WIDTH_PARAMETERS, "submodule", "height", "width", "channels", "inputs"),
            "--against lists the errors of a result, and does not take options of a plan",
        )
        recipe_file = recipe_file or against / "recipe.yaml"
        _compare(build_recipe(model, recipe_file, options), against, as_json)
        return
    if inputs:
        refuse_options(
            ("height", "width", "channels"),
            "--input has the shape of each input, and excludes other options of the shape",
        )
    recipe = build_recipe(model, recipe_file, options)

    from rich.console import Console

    from qgait_ptq.cli.inputs import load_network
    from qgait_ptq.gait.data.sequences import shape_text
    from qgait_ptq.placement.layers import float_operators
    from qgait_ptq.placement.planning import REPORTED_FRAMES, plan
    from qgait_ptq.placement.totals import count_totals
    from qgait_ptq.report.plain import print_table, write_line
    from qgait_ptq.report.terminal import TerminalProgress, layer_table

    console = Console(stderr=as_json)
    progress = TerminalProgress(console)
    network, _ = load_network(recipe.model, progress)
    size = (height, width or _width(height, recipe.data))
    frame_shape: tuple[int, ...] = size if channels is None else (channels, *size)
    layout = _parse_inputs(inputs)
    if layout is not None:
        frame_shape = (layout.size,)
    with progress.stage("capture"):
        captured, graph_module, layers = plan(
            network,
            frame_shape,
            recipe.quantization,
            frames=recipe.model.frames,
            output=recipe.model.output,
            layout=layout,
            submodule=recipe.model.submodule,
            raw=recipe.data.raw if layout is None else not layout.has_silhouettes,
        )
    if as_json:
        click.echo(json_text([asdict(layer) for layer in layers]))
        return
    frames = captured.frames or REPORTED_FRAMES
    totals = count_totals(graph_module)
    title = (
        f"{recipe.model.path.name} on 1 × {frames} frames of {layout or shape_text(frame_shape)}, "
        f"{recipe.quantization.label} for {recipe.quantization.target}"
    )
    print_table(console, layer_table([asdict(layer) for layer in layers], title))
    for line in (
        *(f"{layer.name}: {layer.note}" for layer in layers if layer.note),
        *(f"{name} in float: {reason}" for name, reason in float_operators(graph_module).items()),
        *totals.lines(),
        totals.describe(),
        f"batch {captured.batch or 'free'}, {_frames_text(captured.frame_counts)}",
        *(f"{name}: {cause}" for name, cause in captured.described_causes().items()),
    ):
        write_line(console, line)


def _width(height: int, data: DataSource) -> int:
    """Return the width of square frames from which the columns of the data are cut.

    Raises:
        ConfigError: nothing is left.
    """
    import numpy as np

    from qgait_ptq.errors import ConfigError
    from qgait_ptq.gait.data.sequences import cut_width

    columns = 0 if data.raw and data.cut_columns is None else data.cut_columns
    if columns is not None and height <= 2 * columns:
        raise ConfigError(
            f"data.cut_columns is {columns}: nothing is left of frames {height}×{height}, from which "
            f"{columns} columns on each side are cut. Pass --width, the width of a frame after the cut"
        )
    return int(cut_width(np.zeros((1, height, height), np.uint8), columns).shape[-1])


def _frames_text(counts: FrameCounts) -> str:
    return "frames free" if counts == FrameCounts() else f"frames: {counts}"


def _parse_inputs(texts: tuple[str, ...]) -> FrameLayout | None:
    """Return the layout of texts such as ``64x44`` and ``scalar:integers``; None if there are none."""
    from qgait_ptq.gait.data.modalities import modality_name
    from qgait_ptq.graph.frame_layout import SCALAR, FrameInput, FrameLayout, InputKind

    parts = []
    for index, text in enumerate(texts):
        sizes, colon, kind = text.partition(":")
        try:
            shape = () if sizes == SCALAR else tuple(int(size) for size in sizes.split("x"))
            part_kind = InputKind(kind) if colon else InputKind.VALUES
        except ValueError:
            shape, part_kind = (0,), InputKind.VALUES
        if min(shape, default=1) < 1:
            raise click.BadParameter(
                f"{text!r} is not a frame shape such as 64x44, 17:integers or {SCALAR}:integers",
                param_hint="--input",
            )
        parts.append(FrameInput(modality_name(index), shape, part_kind))
    return FrameLayout(tuple(parts)) if parts else None


def _compare(recipe: Recipe, folder: Path, as_json: bool) -> None:
    """Print the error of each layer of a result."""
    from rich.console import Console

    from qgait_ptq.cli.inputs import load_data, load_network, open_embedder
    from qgait_ptq.evaluation.layer_comparison import compare_layers
    from qgait_ptq.gait.embedding import network_batch
    from qgait_ptq.placement.planning import plan
    from qgait_ptq.report.plain import print_table
    from qgait_ptq.report.reading import read_report
    from qgait_ptq.report.terminal import TerminalProgress, comparison_table
    from qgait_ptq.runtime.written_file import refuse_damage

    console = Console(stderr=as_json)
    progress = TerminalProgress(console)
    report = read_report(folder)
    embedder = open_embedder(folder / "model.onnx")
    network, source = load_network(recipe.model, progress)
    quantized = report.get("model", {}).get("sha256")
    if quantized is not None and source.get("sha256") != quantized:
        progress.note(f"{recipe.model.path}: not the file that {folder} was quantized from; sha256 differs")
    data = load_data(recipe.data, progress)
    with progress.stage("capture"):
        _, graph_module, _ = plan(
            network,
            embedder.frame_shape,
            recipe.quantization,
            frames=recipe.model.frames,
            output=recipe.model.output,
            layout=embedder.layout,
            raw=embedder.raw,
        )
    chosen = data.test.choose(COMPARED_SEQUENCES, recipe.quantization.seed)
    limit = recipe.quantization.calibration_frames
    sequences = [
        (network_batch(frames, record, embedder.frame_shape, embedder.frame_counts, limit), record.subject)
        for frames, record in chosen
        if embedder.frame_counts.fits(min(len(frames), limit))
    ]
    with progress.stage("layers", len(chosen)) as advance, refuse_damage(embedder.path):
        compared = [
            asdict(layer)
            for layer in compare_layers(graph_module, embedder.path, sequences, report["layers"], advance)
        ]
    if as_json:
        click.echo(json_text(compared))
        return
    title = f"{folder}: file compared with the float network on {len(sequences)} test sequences"
    print_table(console, comparison_table(compared, title))
