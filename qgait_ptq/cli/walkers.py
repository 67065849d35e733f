"""``qgait-ptq walkers``."""

from __future__ import annotations

from pathlib import Path

import click

from qgait_ptq.gait.walkers.population import LARGEST_SPLIT, VIEWS, Split


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--identities", type=click.IntRange(1, LARGEST_SPLIT), default=160, show_default=True)
@click.option("--split", type=click.Choice([s.value for s in Split]), default="train", show_default=True)
@click.option(
    "--views-per-trial",
    type=click.IntRange(1, len(VIEWS)),
    default=len(VIEWS),
    show_default=True,
    help="How many of the 11 views each walk is seen from.",
)
@click.option(
    "--format",
    "array_format",
    type=click.Choice(["pkl", "npz"]),
    default="pkl",
    show_default=True,
    help="pkl as OpenGait reads it, npz compressed.",
)
@click.option(
    "--sheet", type=click.Path(path_type=Path, dir_okay=False), help="Also draw a contact sheet, png."
)
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: all cores]")
def command(
    folder: Path,
    identities: int,
    split: str,
    views_per_trial: int,
    array_format: str,
    sheet: Path | None,
    workers: int | None,
) -> None:
    """Write synthetic walkers to FOLDER in the OpenGait layout, with partition.json.

    Splits are disjoint sets of people. Train and calibration walkers enter the partition's TRAIN_SET, test
    walkers and distractors its TEST_SET.

    \b
    Examples:
      qgait-ptq walkers walkers --identities 160 --split train
      qgait-ptq walkers walkers --identities 40 --split test --sheet walkers.png
    """
    from rich.console import Console

    from qgait_ptq.cli.inputs import usable_cores
    from qgait_ptq.gait.walkers.contact_sheet import write_contact_sheet
    from qgait_ptq.gait.walkers.population import split_identities
    from qgait_ptq.gait.walkers.rendering import write_walkers
    from qgait_ptq.report.terminal import TerminalProgress
    from qgait_ptq.system.locking import locked

    click.get_current_context().with_resource(locked(folder, sheet))
    progress = TerminalProgress(Console())
    people = split_identities(Split(split), identities)
    if sheet is not None:
        write_contact_sheet(sheet, people)
    with progress.stage("walkers", identities) as advance:
        count = write_walkers(
            folder,
            Split(split),
            people,
            views_per_trial=views_per_trial,
            array_format="npz" if array_format == "npz" else "pkl",
            workers=workers or usable_cores(),
            advance=advance,
        )
    progress.note(f"wrote {count} sequences of {identities} walkers to {folder}")
    if sheet is not None:
        progress.note(f"drew {sheet}")
