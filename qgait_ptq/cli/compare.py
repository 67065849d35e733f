"""``qgait-ptq compare``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from qgait_ptq.cli.grouped import GroupedCommand, option
from qgait_ptq.cli.options import FILES, JSON_OPTION, apply_options
from qgait_ptq.system.json_text import json_text


@click.command(cls=GroupedCommand)
@click.argument("results", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RESULT...")
@apply_options(
    option(
        "--html",
        group=FILES,
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write an HTML page with the Pareto fronts of accuracy over size and speed.",
    ),
    JSON_OPTION,
)
def command(results: tuple[Path, ...], html: Path | None, as_json: bool) -> None:
    """Compare result folders of quantize: widths, size, accuracy, speed.

    All results must have been tested on the same data.

    \b
    Example:
      qgait-ptq compare casia-w4a8 again --html compared.html
    """
    from rich.console import Console

    from qgait_ptq.report.comparing import compare_reports, render_comparison, short_names
    from qgait_ptq.report.plain import write_line
    from qgait_ptq.report.reading import read_report
    from qgait_ptq.report.runtime_tables import comparison_of_results
    from qgait_ptq.report.writing import write_text

    contents = [read_report(folder) for folder in results]
    reports = dict(zip(short_names(results), contents, strict=True))
    rows = compare_reports(reports)
    first = next(iter(reports.values()))
    if html is not None:
        write_text(html, render_comparison(rows, first["data"]["description"]))
    if as_json:
        click.echo(json_text([asdict(row) for row in rows]))
        return
    console = Console()
    console.print(comparison_of_results(rows))
    if html is not None:
        write_line(console, f"wrote {html}")
