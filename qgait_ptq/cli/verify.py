"""``qgait-ptq verify``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--sequences", type=click.IntRange(min=1), default=4, show_default=True, help="Of random silhouettes."
)
@click.option("--frames", type=click.IntRange(min=1), default=30, show_default=True, help="Of each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(result: Path, sequences: int, frames: int, as_json: bool) -> None:
    """Bytes of RESULT in onnxruntime that differ from the exact integer reference.

    RESULT is what quantize wrote: the folder, or its model.onnx. Every integer tensor of the graph that
    onnxruntime makes of it is compared. Exit code 1 where a byte differs.

    \b
    Example:
      qgait-ptq verify qgait-out
    """
    from rich.console import Console

    from qgait_ptq.report.runtime_tables import verification_table
    from qgait_ptq.runtime.sessions import ONNXRUNTIME
    from qgait_ptq.runtime.verification import random_batches, verify
    from qgait_ptq.runtime.written_file import open_file

    path = result / "model.onnx" if result.is_dir() else result
    session, _ = open_file(path, ONNXRUNTIME)
    verification = verify(path, random_batches(session, sequences, frames))
    if as_json:
        click.echo(json.dumps({**asdict(verification), "differing": verification.differing}))
    else:
        console = Console()
        console.print(verification_table(verification))
        values = sum(tensor.values for tensor in verification.tensors)
        console.print(
            f"{verification.differing} of {values:,} bytes differ, in {len(verification.tensors)} tensors of "
            f"onnxruntime's graph, over {sequences} sequences of {frames} frames",
            highlight=False,
        )
        if verification.unknown:
            console.print(f"not compared: {', '.join(verification.unknown)}", highlight=False, markup=False)
    if verification.differing:
        raise SystemExit(1)
