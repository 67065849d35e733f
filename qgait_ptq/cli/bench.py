"""``qgait-ptq bench``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from qgait_ptq.cli.grouped import GroupedCommand, count, option
from qgait_ptq.cli.options import JSON_OPTION, PATH, RUN, RUNTIME_OPTION, apply_options
from qgait_ptq.system.json_text import json_text


@click.command(cls=GroupedCommand)
@click.argument("model", type=PATH)
@apply_options(
    option(
        "--against",
        group=RUN,
        type=PATH,
        multiple=True,
        help="ONNX file to compare with, such as float.onnx. Can be repeated.",
    ),
    RUNTIME_OPTION,
    count("--threads", "Threads of each call.", RUN, 1),
    count("--frames", "Frames of a sequence.", RUN, default_text="30, or the number that files fix"),
    count("--batch", "Sequences in each call.", RUN, default_text="1, or the number that files fix"),
    count("--rounds", "Number of rounds. Each round runs every file.", RUN, 9),
    JSON_OPTION,
)
def command(
    model: Path,
    against: tuple[Path, ...],
    runtime: str,
    threads: int,
    frames: int | None,
    batch: int | None,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure speed, memory and size of MODEL and of other files. The files run in turn.

    \b
    Example:
      qgait-ptq bench qgait-out/model.onnx --against qgait-out/float.onnx
    """
    from rich.console import Console

    from qgait_ptq.evaluation.benchmark import benchmark_files, fit_setting, is_noisy
    from qgait_ptq.evaluation.workload import BenchmarkSetting
    from qgait_ptq.report.plain import print_table, write_line
    from qgait_ptq.report.runtime_tables import bench_table
    from qgait_ptq.report.terminal import TerminalProgress

    console = Console(stderr=as_json)
    setting = fit_setting([*against, model], BenchmarkSetting(runtime, threads, frames, batch, rounds))
    steps = rounds + len(against) + 1  # memory is measured once for each file
    with TerminalProgress(console).stage("speed, memory", steps) as advance:
        measured = benchmark_files([*against, model], setting, advance)
    if as_json:
        rows = [{**asdict(one), "path": str(one.path)} for one in measured]
        click.echo(json_text({"setting": asdict(setting), "noisy": is_noisy(measured), "files": rows}))
        return
    work = f"{setting.batch} × {setting.frames} frames, {rounds} rounds"
    title = f"{runtime}, {threads} thread{'s' * (threads > 1)}, {work}"
    print_table(console, bench_table(measured, title))
    if is_noisy(measured):
        write_line(console, "other programs used the machine in most rounds; these figures are not reliable")
