"""``qgait-ptq verify``."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qgait_ptq.cli.grouped import GroupedCommand, count, option
from qgait_ptq.cli.options import JSON_OPTION, PATH, RUN, apply_options
from qgait_ptq.system.json_text import json_text

if TYPE_CHECKING:
    from qgait_ptq.reference.proof import ExactnessProof
    from qgait_ptq.verification.file_bytes import Verification


@click.command(cls=GroupedCommand)
@click.argument("result", type=PATH)
@apply_options(
    count("--sequences", "Number of random sequences.", RUN, 4),
    count("--frames", "Frames of each sequence.", RUN, default_text="30, or the number that the file fixes"),
    option(
        "--processor",
        group=RUN,
        type=click.Choice(["avx2", "arm64"]),
        default_text="this one",
        help="Processor to emulate with QEMU.",
    ),
    JSON_OPTION,
)
def command(result: Path, sequences: int, frames: int | None, processor: str | None, as_json: bool) -> None:
    """Prove that RESULT gives the same integers everywhere, and compare it with the integer reference.

    RESULT is a result folder of quantize or its model.onnx. The proof bounds the pair sums of each layer,
    which some processors store in 16 bits, and tries all codes of additions. Then every integer tensor of
    onnxruntime's optimized graph is compared byte by byte. The exit code is 1 if a byte differs.

    \b
    Examples:
      qgait-ptq verify qgait-out
      qgait-ptq verify qgait-out --processor avx2
    """
    from rich.console import Console

    from qgait_ptq.report.plain import print_table, write_line
    from qgait_ptq.report.runtime_tables import pair_table, verification_table

    path = result / "model.onnx" if os.path.isdir(result) else result
    examined = examine(path, sequences, frames, processor)
    proof, verification, damage = examined.proof, examined.verification, examined.damage
    if as_json:
        described = {
            **asdict(verification),
            "differing": verification.differing,
            "processor": processor,
            "pair_sums": {
                **proof.describe(),
                "layers": [asdict(layer) for layer in proof.pair_sums.layers],
                "additions": [asdict(addition) for addition in proof.additions],
            },
            "saturation_damage": damage,
        }
        click.echo(json_text(described))
    else:
        console = Console()
        print_table(console, pair_table(proof))
        print_table(console, verification_table(verification))
        values = sum(tensor.values for tensor in verification.tensors)
        if not verification.tensors and not proof.pair_sums.layers:
            write_line(console, "nothing to verify: no layer of the file computes in integers")
            return
        write_line(
            console,
            f"{verification.differing} of {values:,} bytes differ, in {len(verification.tensors)} tensors of "
            f"onnxruntime's graph, over {sequences} sequences of {examined.frames} frames"
            + (f", on an emulated {processor} processor" if processor else ""),
        )
        write_line(console, proof.verdict())
        if damage is not None:
            write_line(
                console,
                f"with saturating pair sums, {100 * damage:.1f} % of the integers would differ (computed by "
                "the integer reference)",
            )
        if verification.unknown:
            write_line(console, f"not compared: {', '.join(verification.unknown)}")
    if verification.differing:
        raise SystemExit(1)


@dataclass(frozen=True)
class Examination:
    """What is known about the integers of a file.

    Attributes:
        proof: bounds of its pair sums, and all codes of its additions.
        verification: comparison of onnxruntime with the integer reference.
        damage: share of integers that saturation would change, 0 to 1; None if nothing can saturate.
        frames: frames of each compared sequence.
    """

    proof: ExactnessProof
    verification: Verification
    damage: float | None
    frames: int


def examine(
    path: Path, sequences: int, frames: int | None = None, processor: str | None = None
) -> Examination:
    """Compute the proof of a file, and compare the file in onnxruntime with the integer reference.

    Args:
        path: path of the file.
        sequences: number of random sequences.
        frames: frames of each sequence; None for the only number that the file takes, or the usual one.
        processor: processor to emulate; None for this one.

    Raises:
        ModelError: the file is damaged, or the toolkit did not write it.
        ConfigError: the processor cannot be emulated on this machine, or the file takes another number of
            frames only.
    """
    from qgait_ptq.evaluation.workload import USUAL_FRAMES, fitting_size
    from qgait_ptq.exporters.onnx_file import read_model
    from qgait_ptq.reference.proof import prove_exactness
    from qgait_ptq.runtime.sessions import ONNXRUNTIME
    from qgait_ptq.runtime.written_file import open_file, refuse_damage
    from qgait_ptq.verification.file_bytes import random_batches, saturation_damage, verify

    session = open_file(path, ONNXRUNTIME).session
    frames = fitting_size({str(path): session}, 1, USUAL_FRAMES, frames)
    batches = random_batches(session, sequences, frames)
    with refuse_damage(path):
        proof = prove_exactness(read_model(path))
        verification = verify(path, batches, processor)
        damage = None if proof.pair_sums.safe else saturation_damage(path, batches[:1])
    return Examination(proof, verification, damage, frames)
