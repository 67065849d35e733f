"""``qgait-ptq quantize --dry-run``: planned widths, and estimates of size and time."""

from __future__ import annotations

from dataclasses import asdict

import torch
from rich.console import Console
from torch import nn

from qgait_ptq.cli.inputs import check_walker_settings, load_data
from qgait_ptq.config.goals import unused_widths_notes
from qgait_ptq.config.schema import Recipe
from qgait_ptq.gait.walkers.loading import TEST_WALKERS, WALKER_FRAME_SHAPE, walker_counts
from qgait_ptq.pipeline.expectation import Expectation, expect
from qgait_ptq.placement.planning import plan
from qgait_ptq.placement.submodule_data import submodule_config
from qgait_ptq.report.plain import print_table
from qgait_ptq.report.terminal import layer_table
from qgait_ptq.system.progress import Progress
from qgait_ptq.targets.registry import get_target


def show_plan(
    recipe: Recipe, network: nn.Module, device: torch.device, progress: Progress, console: Console
) -> Expectation:
    """Print the layers with their widths, and the estimated file size and time.

    Args:
        recipe: recipe of the run.
        network: float network of the recipe.
        device: device of the run.
        progress: receives stages and notes.
        console: console for the table of layers.
    """
    config = recipe.quantization if recipe.model.submodule is None else submodule_config(recipe.quantization)
    if recipe.data.root is None:  # counting the built-in walkers needs no rendering
        check_walker_settings(recipe.data)
        frame_shape: tuple[int, ...] = WALKER_FRAME_SHAPE
        layout, raw = None, False
        sequences = walker_counts(recipe.data.test_walkers or TEST_WALKERS)
    else:
        data = load_data(recipe.data, progress)
        frame_shape, layout, raw = data.frame_shape, data.layout, data.raw
        sequences = len(data.calibration), len(data.test)
    captured, graph, layers = plan(
        network,
        frame_shape,
        config,
        frames=recipe.model.frames,
        output=recipe.model.output,
        layout=layout,
        submodule=recipe.model.submodule,
        raw=raw,
    )
    expected = expect(config, captured, graph, layers, get_target(config.target), sequences, device)
    title = f"{recipe.model.path.name}, {config.label} for {config.target}"
    print_table(console, layer_table([asdict(layer) for layer in layers], title))
    if any(goal is not None for goal in (config.budget, config.target_accuracy, config.max_drop)):
        progress.note("a run chooses other widths than these; it takes several times as long")
    for line in (
        *unused_widths_notes(config),
        *(f"{layer.name}: {layer.note}" for layer in layers if layer.note),
        f"{min(config.calibration_sequences, sequences[0])} of {sequences[0]} sequences for calibration, "
        f"{sequences[1]} for tests",
        f"estimated file size: {expected.file_bytes / 1e6:.2f} MB",
        expected.time_line,
        "nothing was quantized (--dry-run)",
    ):
        progress.note(line)
    return expected
