"""``qgait-ptq embed``."""

from __future__ import annotations

from pathlib import Path

import click

from qgait_ptq.cli.grouped import GroupedCommand, option
from qgait_ptq.cli.options import FILES, PATH, RUN, RUNTIME_OPTION, apply_options


@click.command(cls=GroupedCommand)
@click.argument("model", type=PATH)
@click.argument("directory", type=PATH)
@apply_options(
    option(
        "--out", group=FILES, type=PATH, default="embeddings.npz", show_default=True, help="File to write."
    ),
    RUNTIME_OPTION,
    option(
        "--jobs",
        group=RUN,
        type=click.IntRange(min=1),
        default_text="number of cores",
        help="Sequences to embed at the same time.",
    ),
)
def command(model: Path, directory: Path, out: Path, runtime: str, jobs: int | None) -> None:
    """Embed the sequences in DIRECTORY and write the embeddings to one npz file.

    DIRECTORY has the layout subject/type/view. The file has embeddings [n, parts, channels] and the names of
    the sequences. An interrupted run continues when it is started again, unless the model or a sequence has
    changed.

    \b
    Example:
      qgait-ptq embed qgait-out/model.onnx CASIA-B --out embeddings.npz
    """
    from rich.console import Console

    from qgait_ptq.gait.data.dataset import GaitDataset
    from qgait_ptq.gait.data.sequences import Reading
    from qgait_ptq.report.terminal import TerminalProgress
    from qgait_ptq.runtime.embedder import Embedder
    from qgait_ptq.runtime.embedding_files import embed_to_file
    from qgait_ptq.system.exchanging import in_first
    from qgait_ptq.system.locking import locked
    from qgait_ptq.system.processes import processes
    from qgait_ptq.system.threads import usable_cores

    progress = TerminalProgress(Console())
    click.get_current_context().with_resource(in_first(locked(out)))
    embedder = Embedder(model, threads=1, runtime=runtime)
    # Frames are read uncut: the embedder cuts them in the same way as in calibration.
    reading = Reading(cut_columns=0, raw=embedder.raw, modalities=embedder.modalities)
    data = GaitDataset.from_directory(directory, reading=reading)
    progress.note(data.summary)
    with progress.stage("sequences", len(data)) as advance:
        resumed = embed_to_file(
            embedder, data, out, jobs or max(1, usable_cores() // processes().here), advance
        )
    if resumed:
        progress.note(f"{resumed} sequences were already embedded by an earlier run")
    progress.note(f"wrote {out}: {len(data)} embeddings")
