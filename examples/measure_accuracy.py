"""The shipped network at all widths and several seeds: ranking of the float network and of the ONNX file.

    OMP_NUM_THREADS=1 python examples/measure_accuracy.py --out docs/accuracy

What `qgait-ptq quantize` does with its defaults on the built-in synthetic walkers, for each seed and width;
the float embeddings are computed once. The export compares each file with the simulation. Every run is a line
of OUT/runs.jsonl, so that a killed measurement goes on where it was; OUT/accuracy.md is the table.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import qgait_ptq as qg
from qgait_ptq.gait import embed_dataset, embedding_sqnr, evaluate_embeddings
from qgait_ptq.gait.zoo import gaitbase_small

WIDTHS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A3": (3, 3)}
ALLOWED = {"W8A8": 0.1, "W4A8": 0.3, "W4A4": 0.5, "W3A3": 2.5}  # points of mean rank-1
NETWORK = Path(__file__).parent / "models" / "gaitbase-small.pt"


def load_network() -> torch.nn.Module:
    """The shipped network."""
    network = gaitbase_small()
    network.load_state_dict(torch.load(NETWORK, weights_only=True)["model"])
    return network.eval()


def measure(data: qg.GaitData, reference: Tensor, label: str, seed: int) -> dict[str, Any]:
    """Quantize at one width with one seed, and rank the test walkers with the file."""
    weight_bits, activation_bits = WIDTHS[label]
    config = qg.QuantConfig(weight_bits=weight_bits, activation_bits=activation_bits, seed=seed)
    started = time.perf_counter()
    state = qg.calibrate(qg.prepare(load_network(), data, config, device="cpu"))
    seconds = time.perf_counter() - started
    file = qg.export(state).file
    (executed,) = embed_dataset(data.test, [file.run], data.frame_shape, batches=True)
    return {
        "bits": label,
        "seed": seed,
        "float": rank(reference, data),
        "file": rank(executed, data),
        "float_gallery": rank(executed, data, reference),
        "sqnr_db": embedding_sqnr(reference, executed),
        "seconds": seconds,
        "stages": dict(state.record),
    }


def rank(embeddings: Tensor, data: qg.GaitData, gallery: Tensor | None = None) -> dict[str, float]:
    """Mean rank-1 over the conditions and mAP under the CASIA-B protocol, in percent.

    The gallery may have been embedded by another network.
    """
    assert data.test_set is not None
    accuracy = evaluate_embeddings(embeddings, data.test.records, data.test_set, data.metric, known=gallery)
    return {
        "mean_rank1": accuracy.rank1["mean"],
        "map": accuracy.mean_average_precision,
    }


def markdown(runs: list[dict[str, Any]]) -> str:
    """A row for each width: means over seeds, and the largest loss of a seed."""
    lines = [
        "Mean rank-1 over NM, BG and CL in percent, means over seeds; the loss is against float. In *float "
        "gallery*, the file embeds the probes only, and the float network the gallery.",
        "",
        "| bits | seeds | float | file | loss of the file | worst seed | allowed "
        "| float gallery | mAP float | mAP file | mAP float gallery | SQNR, dB |",
        "|---|---:" + "|---:" * 10 + "|",
    ]
    for bits, allowed in ALLOWED.items():
        chosen = [run for run in runs if run["bits"] == bits]
        if not chosen:
            continue
        losses = [run["float"]["mean_rank1"] - run["file"]["mean_rank1"] for run in chosen]
        cells = [
            bits,
            len(chosen),
            *(mean_of(chosen, kind, "mean_rank1") for kind in ("float", "file")),
            f"{np.mean(losses):.2f}",
            f"{max(losses):.2f}",
            allowed,
            mean_of(chosen, "float_gallery", "mean_rank1"),
            *(mean_of(chosen, kind, "map") for kind in ("float", "file", "float_gallery")),
            f"{np.mean([run['sqnr_db'] for run in chosen]):.1f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def mean_of(runs: list[dict[str, Any]], kind: str, measure: str) -> str:
    """Mean of a measure over seeds."""
    return f"{np.mean([run[kind][measure] for run in runs]):.2f}"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="docs/accuracy", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--bits", "labels", multiple=True, default=tuple(WIDTHS), show_default=True)
def main(out: Path, seeds: int, labels: tuple[str, ...]) -> None:
    """Measure what has not been measured yet and write OUT/accuracy.md."""
    out.mkdir(parents=True, exist_ok=True)
    lines = out / "runs.jsonl"
    runs = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {(run["bits"], run["seed"]) for run in runs}
    wanted = [(bits, seed) for seed in range(seeds) for bits in labels if (bits, seed) not in done]
    if wanted:
        data = qg.load_walkers(workers=os.cpu_count() or 1)
        (reference,) = embed_dataset(data.test, [load_network()], data.frame_shape, batches=True)
    for bits, seed in wanted:
        runs.append(measure(data, reference, bits, seed))
        with lines.open("a") as file:
            file.write(json.dumps(runs[-1]) + "\n")
        before, after = (runs[-1][which]["mean_rank1"] for which in ("float", "file"))
        click.echo(f"{bits} seed {seed}: {before:.2f} → {after:.2f}")
    (out / "accuracy.md").write_text(markdown(runs))
    click.echo(markdown(runs))


if __name__ == "__main__":
    main()
