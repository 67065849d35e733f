"""``qgait-ptq targets``."""

from __future__ import annotations

from pathlib import Path

import click

from qgait_ptq.cli.grouped import GroupedCommand
from qgait_ptq.cli.options import JSON_OPTION, PATH, apply_options
from qgait_ptq.system.json_text import json_text


@click.command(cls=GroupedCommand)
@click.argument("file", type=PATH, required=False)
@apply_options(JSON_OPTION)
def command(file: Path | None, as_json: bool) -> None:
    """List the targets, or check FILE against the rules of each target.

    With FILE, also prove whether it gives the same integers on every processor.

    \b
    Examples:
      qgait-ptq targets
      qgait-ptq targets qgait-out/model.onnx
    """
    from rich.console import Console

    from qgait_ptq.report.plain import print_table, write_line
    from qgait_ptq.report.runtime_tables import pair_table, target_table
    from qgait_ptq.targets.registry import TARGETS
    from qgait_ptq.targets.rules import find_broken_rules

    broken: dict[str, list[str]] = {}
    proof = None
    if file is not None:
        from qgait_ptq.exporters.onnx_file import read_model
        from qgait_ptq.reference.proof import prove_exactness
        from qgait_ptq.runtime.written_file import refuse_damage

        model = read_model(file)
        with refuse_damage(file):
            broken = {t.name: [str(rule) for rule in find_broken_rules(model, t)] for t in TARGETS.values()}
            proof = prove_exactness(model)
    if as_json:
        described = {
            target.name: {
                "description": target.description,
                "opset": target.opset,
                "runtimes": target.runtimes,
                "limits": target.limits,
                **({"broken_rules": broken[target.name]} if file else {}),
            }
            for target in TARGETS.values()
        }
        click.echo(json_text(described | ({"pair_sums": proof.describe()} if proof else {})))
        return
    console = Console()
    print_table(console, target_table(list(TARGETS.values())))
    for target in TARGETS.values():
        lines = broken[target.name] or ["keeps all rules"] if file else (target.description, *target.limits)
        for line in lines:
            write_line(console, f"{target.name}: {line}")
    if proof is not None:
        print_table(console, pair_table(proof))
        write_line(console, proof.verdict())
