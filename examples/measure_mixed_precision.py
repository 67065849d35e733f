"""Widths chosen layer by layer against uniform ones, on synthetic walkers.

    python examples/measure_mixed_precision.py --out docs/mixed_precision

GaitBase-small with the toolkit's stages. Each seed has its own calibration walkers; all runs are judged on 60
test walkers whom nothing else has seen, against a gallery with 150 distractors. Every run is a line of
OUT/runs.jsonl, so a killed measurement goes on where it was; OUT/mixed_precision.md is the table. Walkers lie
in WORK and may be removed at any time.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from ablation_runs import (
    COMMON,
    DISTRACTORS,
    SIZE,
    rank,
    read_walkers,
    render_calibration,
    render_distractors,
    render_tested,
    write_walkers,
)
from ablation_tables import bootstrap, by_identity
from torch import Tensor

import qgait_ptq as qg
from qgait_ptq.gait import GaitDataset, embed_dataset, embedding_sqnr
from qgait_ptq.gait.zoo import gaitbase_small

NETWORK = Path(__file__).parent / "models" / "gaitbase-small.pt"
TEST_IDENTITIES = 60


@dataclass(frozen=True)
class Variant:
    """One way of giving widths.

    Attributes:
        name: of the row.
        says: what the row is, for the table.
        settings: of `QuantConfig`.
        against: the row that costs the same.
    """

    name: str
    says: str
    settings: dict[str, Any]
    against: str | None = None


def uniform(
    name: str, says: str, weight_bits: int, activation_bits: int, against: str | None = None
) -> Variant:
    """One width for all layers but the first and the last, which have 8 bits."""
    return Variant(name, says, {"weight_bits": weight_bits, "activation_bits": activation_bits}, against)


def within(name: str, says: str, against: str, activation_bits: int = 8, **budget: float) -> Variant:
    """Widths chosen for a budget."""
    return Variant(name, says, {"activation_bits": activation_bits, "budget": budget}, against)


VARIANTS = (
    uniform("W4A4", "uniform", 4, 4),
    uniform("W3A3", "uniform", 3, 3),
    within("operations of W3A3", "weights and inputs chosen", "W3A3", bops_percent=14.51),
    uniform("W2A4", "uniform", 2, 4),
    within("operations of W2A4", "weights and inputs chosen", "W2A4", bops_percent=12.95),
    within("size of W4A4", "weights chosen, 8-bit inputs", "W4A4", size_mb=0.464),
    within("three quarters of it", "weights chosen, 8-bit inputs", "W4A4", size_mb=0.355),
    uniform("W4A8", "uniform, the size of W4A4", 4, 8, "W4A4"),
    within("operations of W4A4", "weights and inputs chosen", "W4A4", bops_percent=25.39),
    within("size of W4A4, 4-bit inputs", "weights chosen", "W4A4", activation_bits=4, size_mb=0.464),
)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="docs/mixed_precision", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default="mixed-precision-work", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--table", is_flag=True, help="Write the table from what there is, and run nothing.")
def main(out: Path, work: Path, seeds: int, table: bool) -> None:
    """Run what has not been run yet and write OUT/mixed_precision.md."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "runs.jsonl"
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(run["name"], run["seed"]) for run in runs}
    for seed in range(seeds):
        for variant in VARIANTS:
            if table or (variant.name, seed) in done:
                continue
            runs.append(attempt(variant, seed, work))
            with path.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
            found = runs[-1].get("failure") or f"{runs[-1]['bytes']} bytes, {runs[-1]['sqnr_db']:.2f} dB"
            click.echo(f"{variant.name}, seed {seed}: {found}")
            write_table(runs, out)
    write_table(runs, out)


def attempt(variant: Variant, seed: int, work: Path) -> dict[str, Any]:
    """Run a variant. One that the toolkit refuses, such as a file that differs, ends no experiment."""
    try:
        return execute(variant, seed, work)
    except qg.errors.QgaitError as error:
        return {"name": variant.name, "seed": seed, "failure": str(error)}


def execute(variant: Variant, seed: int, work: Path) -> dict[str, Any]:
    """Choose widths, calibrate with all default stages, and rank the test walkers."""
    config = qg.QuantConfig.model_validate({**COMMON, "seed": seed, **variant.settings})
    calibration = walkers(work, f"calibration-{seed}")
    started = time.process_time()
    data = qg.GaitData(calibration, calibration)
    state = qg.calibrate(qg.prepare(load_network(), data, config, device="cpu"))
    seconds = time.process_time() - started
    test = walkers(work, "test")
    (embeddings,) = embed_dataset(test, [state.quantized], SIZE)
    reference = float_embeddings(test, work)
    return {
        "name": variant.name,
        "seed": seed,
        "bytes": qg.export(state).file.model.ByteSize(),
        "cpu_seconds": round(seconds, 1),
        "sqnr_db": embedding_sqnr(reference, embeddings),
        "bops_percent": bit_operations(state),
        "widths": {layer.name: [layer.weight_bits, layer.activation_bits] for layer in state.layers},
        "quantized": rank(embeddings, test),
        "float": rank(reference, test),
    }


def bit_operations(state: qg.State) -> float:
    """In percent of those with 8 bits everywhere."""
    layers = state.layers
    spent = sum(layer.macs * (layer.weight_bits or 32) * (layer.activation_bits or 32) for layer in layers)
    return 100 * spent / sum(64 * layer.macs for layer in layers)


def walkers(work: Path, name: str) -> GaitDataset:
    """Read walkers, rendered when they are first needed."""
    path = work / f"{name}.npz"
    if not path.exists():
        if name == "test":
            write_walkers(path, render_tested(TEST_IDENTITIES, 1), render_distractors(DISTRACTORS))
        else:
            write_walkers(path, render_calibration(int(name.rpartition("-")[2])))
    return read_walkers(path)


def float_embeddings(test: GaitDataset, work: Path) -> Tensor:
    """Embeddings of the float network, computed once."""
    path = work / "float.pt"
    if not path.exists():
        (embeddings,) = embed_dataset(test, [load_network()], SIZE)
        torch.save(embeddings, path)
    loaded: Tensor = torch.load(path, weights_only=True)
    return loaded


def load_network() -> torch.nn.Module:
    """The shipped network."""
    network = gaitbase_small()
    network.load_state_dict(torch.load(NETWORK, weights_only=True)["model"])
    return network.eval()


def write_table(runs: list[dict[str, Any]], out: Path) -> None:
    """One row a variant; differences are paired with uniform widths of the same cost."""
    refused = Counter(run["name"] for run in runs if "failure" in run)
    runs = [run for run in runs if "failure" not in run]
    by_name = {
        variant.name: {run["seed"]: run for run in runs if run["name"] == variant.name}
        for variant in VARIANTS
    }
    lines = [
        f"Synthetic walkers: {TEST_IDENTITIES} test identities, {DISTRACTORS} distractors in the gallery. "
        f"Float: rank-1 {by_identity(runs[:1], 'rank1', 'float').mean():.2f} %, "
        f"mAP {by_identity(runs[:1], 'ap', 'float').mean():.2f} %. Uniform widths have 8 bits in the "
        "first and the last layer. Δ with the paired 95 % interval over seeds and identities.",
        "",
        "| widths | | seeds | MB | bit operations, % | rank-1 | mAP | SQNR, dB | against | Δ rank-1 |"
        " Δ mAP | CPU s |",
        "|---|---|---|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    lines += [_line(variant, by_name) for variant in VARIANTS if by_name[variant.name]]
    lines += ["", *(f"Refused: {count} of {name}." for name, count in refused.items())] if refused else []
    beside = out / "mixed_precision.md.part"
    beside.write_text("\n".join(lines) + "\n")
    os.replace(beside, out / "mixed_precision.md")


def _line(variant: Variant, by_name: dict[str, dict[int, dict[str, Any]]]) -> str:
    by_seed = by_name[variant.name]
    runs = list(by_seed.values())
    cells = [variant.name, variant.says, str(len(runs)), f"{np.mean([r['bytes'] for r in runs]) / 1e6:.3f}"]
    cells.append(f"{np.mean([run['bops_percent'] for run in runs]):.1f}")
    cells += [f"{by_identity(runs, measure).mean():.2f}" for measure in ("rank1", "ap")]
    cells += [f"{np.mean([run['sqnr_db'] for run in runs]):.2f}", variant.against or ""]
    others = by_name.get(variant.against or "", {})
    seeds = [seed for seed in by_seed if seed in others]
    for measure in ("rank1", "ap"):
        if not seeds:
            cells.append("")
            continue
        mine, theirs = ([row[seed] for seed in seeds] for row in (by_seed, others))
        difference = by_identity(mine, measure) - by_identity(theirs, measure)
        low, high = bootstrap(difference)
        cells.append(f"{difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
    cells.append(f"{np.mean([run['cpu_seconds'] for run in runs]):.0f}")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
