"""Widths chosen layer by layer against uniform ones, on synthetic walkers.

    python examples/measure_mixed_precision.py --out docs/mixed_precision

GaitBase-small with the toolkit's stages. Each seed has its own calibration walkers; all runs are judged on 60
test walkers whom nothing else has seen, against a gallery with 150 distractors. Every run is a line of
OUT/runs.jsonl, so a killed measurement goes on where it was; OUT/mixed_precision.md is the table. Walkers lie
in WORK and may be removed at any time.
"""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from ablation_runs import (
    CALIBRATION_IDENTITIES,
    COMMON,
    DISTRACTORS,
    FIRST_CALIBRATION,
    FIRST_TEST,
    SIZE,
    numbers,
    rank,
    read_walkers,
    render_parts,
)
from ablation_tables import bootstrap, by_identity
from torch import Tensor

from qgait_ptq.config import QuantConfig
from qgait_ptq.export.onnx_file import export_quantized
from qgait_ptq.export.targets import get_target
from qgait_ptq.gait.dataset import GaitDataset
from qgait_ptq.gait.embedding import embed_dataset
from qgait_ptq.gait.metrics import embedding_sqnr
from qgait_ptq.gait.walkers.population import TRIALS, Split
from qgait_ptq.gait.zoo import gaitbase_small
from qgait_ptq.graph.layers import LayerPlan, list_layers
from qgait_ptq.graph.placement import place
from qgait_ptq.mixed_precision import WidthChooser
from qgait_ptq.planning import bit_widths, plan
from qgait_ptq.progress import Silent
from qgait_ptq.recipes import parse
from qgait_ptq.stages import CalibrationRun

NETWORK = Path(__file__).parent / "models" / "gaitbase-small.pt"
TEST_IDENTITIES = 60
UNIFORM = "uniform W4A4"


@dataclass(frozen=True)
class Variant:
    """One way of giving widths.

    Attributes:
        name: of the row.
        settings: of `QuantConfig`.
        says: what the row is, for the table.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    says: str = ""


VARIANTS = (
    Variant(UNIFORM, {"weight_bits": 4, "activation_bits": 4}, "8 bits in the first and the last layer"),
    Variant("uniform W4A8", {"weight_bits": 4, "activation_bits": 8}, "the same with 8-bit inputs"),
    Variant(
        "size of W4A4, inputs 4 bits",
        {"activation_bits": 4, "budget": {"size_mb": 0.464}},
        "weights chosen, same inputs as W4A4",
    ),
    Variant("size of W4A4", {"budget": {"size_mb": 0.464}}, "weights chosen, 8-bit inputs"),
    Variant("three quarters of it", {"budget": {"size_mb": 0.355}}, "weights chosen, 8-bit inputs"),
    Variant("operations of W4A4", {"budget": {"bops_percent": 25.38}}, "weights and inputs chosen"),
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
            runs.append(execute(variant, seed, work))
            with path.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
            click.echo(
                f"{variant.name}, seed {seed}: {runs[-1]['bytes']} bytes, {runs[-1]['sqnr_db']:.2f} dB"
            )
            write_table(runs, out)
    write_table(runs, out)


def execute(variant: Variant, seed: int, work: Path) -> dict[str, Any]:
    """Choose widths, calibrate with all default stages, and rank the test walkers."""
    config = parse(QuantConfig, {**COMMON, "seed": seed, **variant.settings}, variant.name)
    calibration = walkers(work, f"calibration-{seed}")
    started = time.process_time()
    captured, network, _ = plan(load_network(), SIZE, config)
    device = torch.device("cpu")
    if config.budget is not None:
        chooser = WidthChooser(config, captured, copy.deepcopy(network), device, Silent(), byte_input=True)
        config, _ = chooser.choose(calibration)
        place(network, get_target(config.target).rules, bit_widths(config))
    quantized = CalibrationRun(config, captured, network, device, Silent()).run(calibration)
    seconds = time.process_time() - started
    test = walkers(work, "test")
    (embeddings,) = embed_dataset(test, [quantized], SIZE)
    reference = float_embeddings(test, work)
    return {
        "name": variant.name,
        "seed": seed,
        "bytes": export_quantized(quantized, captured, get_target(config.target), True).ByteSize(),
        "cpu_seconds": round(seconds, 1),
        "sqnr_db": embedding_sqnr(reference, embeddings),
        "bops_percent": bit_operations(list_layers(network)),
        "widths": {layer.name: [layer.weight_bits, layer.activation_bits] for layer in list_layers(network)},
        "quantized": rank(embeddings, test),
        "float": rank(reference, test),
    }


def bit_operations(layers: list[LayerPlan]) -> float:
    """In percent of those with 8 bits everywhere."""
    spent = sum(layer.macs * (layer.weight_bits or 32) * (layer.activation_bits or 32) for layer in layers)
    return 100 * spent / sum(64 * layer.macs for layer in layers)


def walkers(work: Path, name: str) -> GaitDataset:
    """Read walkers, rendered when they are first needed."""
    path = work / f"{name}.npz"
    if not path.exists():
        if name == "test":
            render_parts(
                path,
                [
                    (numbers(Split.TEST, FIRST_TEST, TEST_IDENTITIES), 1, TRIALS),
                    (numbers(Split.DISTRACTOR, 0, DISTRACTORS), 1, TRIALS[:1]),
                ],
            )
        else:
            first = FIRST_CALIBRATION + CALIBRATION_IDENTITIES * int(name.rpartition("-")[2])
            render_parts(path, [(numbers(Split.CALIBRATION, first, CALIBRATION_IDENTITIES), 1, TRIALS)])
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
    """One row a variant; differences are paired with uniform W4A4 by seed and identity."""
    by_name = {variant.name: [run for run in runs if run["name"] == variant.name] for variant in VARIANTS}
    uniform = {run["seed"]: run for run in by_name[UNIFORM]}
    some = runs[0]
    lines = [
        f"Synthetic walkers: {TEST_IDENTITIES} test identities, {DISTRACTORS} distractors in the gallery. "
        f"Float: rank-1 {by_identity([some], 'rank1', 'float').mean():.2f} %, "
        f"mAP {by_identity([some], 'ap', 'float').mean():.2f} %. Δ against {UNIFORM}, paired 95 % interval "
        "over seeds and identities.",
        "",
        "| widths | | seeds | MB | bit operations, % | rank-1 | mAP | SQNR, dB | Δ rank-1 | Δ mAP | CPU s |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for variant in VARIANTS:
        mine = [run for run in by_name[variant.name] if run["seed"] in uniform]
        if mine:
            lines.append(_line(variant, mine, [uniform[run["seed"]] for run in mine]))
    beside = out / "mixed_precision.md.part"
    beside.write_text("\n".join(lines) + "\n")
    os.replace(beside, out / "mixed_precision.md")


def _line(variant: Variant, mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    cells = [variant.name, variant.says, str(len(mine)), f"{np.mean([r['bytes'] for r in mine]) / 1e6:.3f}"]
    cells.append(f"{np.mean([run['bops_percent'] for run in mine]):.1f}")
    cells += [f"{by_identity(mine, measure).mean():.2f}" for measure in ("rank1", "ap")]
    cells.append(f"{np.mean([run['sqnr_db'] for run in mine]):.2f}")
    for measure in ("rank1", "ap"):
        difference = by_identity(mine, measure) - by_identity(theirs, measure)
        low, high = bootstrap(difference)
        same = variant.name == UNIFORM
        cells.append("" if same else f"{difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
    cells.append(f"{np.mean([run['cpu_seconds'] for run in mine]):.0f}")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
