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
@click.option(
    "--processor",
    type=click.Choice(["avx2", "arm64"]),
    help="Emulate this kind of processor with QEMU instead of using this one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(result: Path, sequences: int, frames: int, processor: str | None, as_json: bool) -> None:
    """Prove that RESULT gives the same integers everywhere; compare it with the integer reference.

    RESULT is what quantize wrote: the folder, or its model.onnx. The proof bounds the sums of neighbouring
    products in each layer; some processors add them in 16 bits. Then every integer tensor of the graph that
    onnxruntime makes of the file is compared, byte by byte. Exit code 1 where a byte differs.

    \b
    Examples:
      qgait-ptq verify qgait-out
      qgait-ptq verify qgait-out --processor avx2
    """
    from rich.console import Console

    from qgait_ptq.export.onnx_file import read_model
    from qgait_ptq.export.pair_sums import bound_pair_sums
    from qgait_ptq.report.runtime_tables import pair_table, verification_table
    from qgait_ptq.runtime.sessions import ONNXRUNTIME
    from qgait_ptq.runtime.verification import random_batches, saturation_damage, verify
    from qgait_ptq.runtime.written_file import open_file

    path = result / "model.onnx" if result.is_dir() else result
    session, _ = open_file(path, ONNXRUNTIME)
    sums = bound_pair_sums(read_model(path))
    batches = random_batches(session, sequences, frames)
    verification = verify(path, batches, processor)
    damage = None if sums.safe else saturation_damage(path, batches[:1])
    if as_json:
        described = {
            **asdict(verification),
            "differing": verification.differing,
            "processor": processor,
            "pair_sums": {**sums.describe(), "layers": [asdict(layer) for layer in sums.layers]},
            "saturation_damage": damage,
        }
        click.echo(json.dumps(described))
    else:
        console = Console()
        console.print(pair_table(sums))
        console.print(verification_table(verification))
        values = sum(tensor.values for tensor in verification.tensors)
        console.print(
            f"{verification.differing} of {values:,} bytes differ, in {len(verification.tensors)} tensors of "
            f"onnxruntime's graph, over {sequences} sequences of {frames} frames"
            + (f", on an emulated {processor} processor" if processor else ""),
            highlight=False,
        )
        console.print(sums.verdict(), highlight=False, markup=False)
        if damage is not None:
            console.print(
                f"with saturating pairs {100 * damage:.1f} % of the integers would differ (computed by the "
                "integer reference)",
                highlight=False,
            )
        if verification.unknown:
            console.print(f"not compared: {', '.join(verification.unknown)}", highlight=False, markup=False)
    if verification.differing:
        raise SystemExit(1)
