"""``qgait-ptq walkers``."""

from __future__ import annotations

from pathlib import Path

import click

from qgait_ptq.cli.grouped import GroupedCommand, option
from qgait_ptq.cli.options import FILES, RUN, apply_options
from qgait_ptq.gait.walkers.population import LARGEST_SPLIT, VIEWS, Split

WALKERS = "Walkers"  # heading of options


@click.command(cls=GroupedCommand)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@apply_options(
    option(
        "--identities",
        group=WALKERS,
        type=click.IntRange(1, LARGEST_SPLIT),
        default=160,
        show_default=True,
        help="Number of people.",
    ),
    option(
        "--split",
        group=WALKERS,
        type=click.Choice([s.value for s in Split]),
        default="train",
        show_default=True,
        help="Set of people. Sets are disjoint.",
    ),
    option(
        "--views-per-trial",
        group=WALKERS,
        type=click.IntRange(1, len(VIEWS)),
        default=len(VIEWS),
        show_default=True,
        help="Number of views of each walk.",
    ),
    option(
        "--format",
        "array_format",
        group=FILES,
        type=click.Choice(["pkl", "npz"]),
        default="pkl",
        show_default=True,
        help="File format: pkl as OpenGait reads it, or compressed npz.",
    ),
    option(
        "--sheet",
        group=FILES,
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write a contact sheet as a PNG file.",
    ),
    option(
        "--workers",
        group=RUN,
        type=click.IntRange(1),
        default_text="number of cores",
        help="Number of processes.",
    ),
)
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

    Splits are disjoint sets of people. In the partition, train and calibration walkers belong to TRAIN_SET,
    test walkers and distractors to TEST_SET.

    \b
    Examples:
      qgait-ptq walkers walkers --identities 160 --split train
      qgait-ptq walkers walkers --identities 40 --split test --sheet walkers.png
    """
    from rich.console import Console

    from qgait_ptq.gait.walkers.contact_sheet import write_contact_sheet
    from qgait_ptq.gait.walkers.population import split_identities
    from qgait_ptq.gait.walkers.rendering import write_walkers
    from qgait_ptq.report.terminal import TerminalProgress
    from qgait_ptq.system.locking import locked
    from qgait_ptq.system.threads import usable_cores

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
