"""``qgait-ptq quantize``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgait_ptq.cli.grouped import GroupedCommand, option
from qgait_ptq.cli.options import (
    CALIBRATION_OPTIONS,
    DATA_OPTIONS,
    DEVICE_OPTION,
    EVALUATION_OPTION,
    FILES,
    GOAL_OPTIONS,
    JSON_OPTION,
    MODEL_OPTIONS,
    PATH,
    RECIPE_OPTION,
    RUN,
    SUBMODULE_OPTION,
    UNLABELLED_OPTION,
    WALKER_OPTIONS,
    WIDTH_OPTIONS,
    apply_options,
)
from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.errors import ConfigError
from qgait_ptq.system.json_text import json_text

if TYPE_CHECKING:
    from qgait_ptq.system.progress import Progress


@click.command(cls=GroupedCommand)
@click.argument("model", type=PATH, required=False)
@apply_options(
    *WIDTH_OPTIONS,
    *GOAL_OPTIONS,
    *CALIBRATION_OPTIONS,
    *DATA_OPTIONS,
    *WALKER_OPTIONS,
    UNLABELLED_OPTION,
    *MODEL_OPTIONS,
    SUBMODULE_OPTION,
    RECIPE_OPTION,
    EVALUATION_OPTION,
    DEVICE_OPTION,
    option("--dry-run", group=RUN, is_flag=True, help="Show layers, estimated size and time, then stop."),
    option("--out", group=FILES, type=PATH, default="qgait-out", show_default=True, help="Result folder."),
    JSON_OPTION,
    option(
        "--log-file",
        group=FILES,
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also log stages and their times to this file.",
    ),
    option("--float-file", group=FILES, is_flag=True, help="Also write OUT/float.onnx, the float network."),
    option("--torch-file", group=FILES, is_flag=True, help="Also write OUT/model.pt2 for PyTorch."),
)
def command(
    model: Path | None,
    recipe_file: Path | None,
    device: str,
    resume: bool,
    out: Path,
    float_file: bool,
    torch_file: bool,
    dry_run: bool,
    as_json: bool,
    log_file: Path | None,
    **options: Any,
) -> None:
    """Quantize MODEL and write OUT/model.onnx, report.html, report.json and recipe.yaml.

    MODEL is a file with weights (safetensors, a state_dict or a training checkpoint) and needs --factory.
    An exported program (torch.export.save) or a pickled module runs code and needs --trust-code.

    \b
    Examples:
      qgait-ptq quantize examples/models/gaitbase-small.pt --bits 8
      qgait-ptq quantize weights.pt --factory mynets:GaitBase --weight-bits 4 --activation-bits 8 \\
          --data CASIA-B --partition CASIA-B.json --out casia-w4a8
      qgait-ptq quantize --recipe casia-w4a8/recipe.yaml --trust-code --out again
    """
    recipe = build_recipe(model, recipe_file, options)
    finetune = recipe.quantization.finetune
    if options.get("unlabelled") is not None and not finetune.enabled:
        raise ConfigError("--unlabelled is used by fine-tuning only; add --finetune")
    if resume and not finetune.enabled:
        raise ConfigError("--resume continues an interrupted fine-tuning; add --finetune")

    from rich.console import Console

    from qgait_ptq.cli.inputs import absolute, load_data, load_network
    from qgait_ptq.cli.plan import show_plan
    from qgait_ptq.pipeline.quantize import quantize
    from qgait_ptq.report.logging import LoggedProgress
    from qgait_ptq.report.plain import print_table
    from qgait_ptq.report.terminal import TerminalProgress, accuracy_table, summary_lines
    from qgait_ptq.report.writing import check_writable
    from qgait_ptq.system.device import choose_device
    from qgait_ptq.system.exchanging import first_only, in_first
    from qgait_ptq.system.locking import locked
    from qgait_ptq.system.processes import processes
    from qgait_ptq.system.writing import beside
    from qgait_ptq.targets.registry import get_target

    console = Console(stderr=as_json)
    progress: Progress = TerminalProgress(console)
    if log_file is not None and processes().first:
        progress = LoggedProgress(progress, log_file)
    get_target(recipe.quantization.target)
    if not dry_run:
        click.get_current_context().with_resource(in_first(locked(out)))
        first_only(lambda: check_writable(out))
    network, source = load_network(recipe.model, progress)
    if dry_run:
        expected = show_plan(recipe, network, choose_device(device), progress, console)
        if as_json:
            click.echo(json_text(asdict(expected)))
        return
    data = load_data(recipe.data, progress, finetune.unlabelled if finetune.enabled else 0)
    repeatable = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(
                update={
                    "path": recipe.model.path.resolve(),
                    "opengait_config": absolute(recipe.model.opengait_config),
                    "sha256": source["sha256"],
                }
            ),
            "data": recipe.data.model_copy(
                update={
                    name: absolute(getattr(recipe.data, name)) for name in ("root", "partition", "unlabelled")
                }
            ),
        }
    )
    result = quantize(
        network,
        data,
        recipe.quantization,
        device=device,
        frames=recipe.model.frames,
        output=recipe.model.output,
        submodule=recipe.model.submodule,
        source=source,
        recipe=repeatable,
        progress=progress,
        work_folder=beside(out, "{}.finetuning"),
        resume=resume,
    )
    if processes().first:
        result.save(out, float_file, torch_file)
    report = result.report.to_json()
    if as_json:
        click.echo(json_text(report))
    print_table(console, accuracy_table(report))
    for line in summary_lines(report):
        progress.note(line)
    progress.note(f"wrote {out}/model.onnx, report.html, report.json and recipe.yaml")
