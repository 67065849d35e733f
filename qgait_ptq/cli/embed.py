"""``qgait-ptq embed``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="embeddings.npz", show_default=True)
@click.option("--runtime", default="onnxruntime", show_default=True, help="onnxruntime or openvino.")
@click.option("--jobs", type=click.IntRange(min=1), help="Sequences at a time.  [default: the cores]")
def command(model: Path, directory: Path, out: Path, runtime: str, jobs: int | None) -> None:
    """Embed the sequences in DIRECTORY, of the layout subject/type/view, into one npz file.

    It holds embeddings [n, parts, channels] and the names of the sequences. A run that was stopped goes on
    where it was when it is started again, unless the model or a sequence has changed.

    \b
    Example:
      qgait-ptq embed qgait-out/model.onnx CASIA-B --out embeddings.npz
    """
    from rich.console import Console

    from qgait_ptq.cli.inputs import usable_cores
    from qgait_ptq.gait.data.dataset import GaitDataset
    from qgait_ptq.gait.data.sequences import Reading
    from qgait_ptq.report.terminal import TerminalProgress
    from qgait_ptq.runtime.embedder import Embedder
    from qgait_ptq.runtime.embedding_files import embed_to_file
    from qgait_ptq.system.locking import locked

    progress = TerminalProgress(Console())
    click.get_current_context().with_resource(locked(out))
    embedder = Embedder(model, threads=1, runtime=runtime)
    # Frames as they are: the embedder cuts them as the network was calibrated.
    reading = Reading(cut_columns=0, raw=embedder.raw, modalities=embedder.modalities)
    data = GaitDataset.from_directory(directory, reading=reading)
    with progress.stage("sequences", len(data)) as advance:
        resumed = embed_to_file(embedder, data, out, jobs or usable_cores(), advance)
    if resumed:
        progress.note(f"{resumed} sequences were embedded before")
    progress.note(f"wrote {out}: {len(data)} embeddings")
