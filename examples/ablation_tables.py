"""The tables of the ablation, from the runs there are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ablation_runs import CONDITIONS, DISTRACTORS, TEST_IDENTITIES
from ablation_variants import Job
from numpy.typing import NDArray

BOOTSTRAP = 2000


Run = dict[str, Any]


def read_runs(path: Path) -> dict[str, Run]:
    """Results by key. A half-written last line that a kill left is passed over.

    Raises:
        ValueError: the runs have different terms, so that their figures cannot be compared.
    """
    runs: dict[str, Run] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                run = json.loads(line)
            except json.JSONDecodeError:
                continue
            runs[run["key"]] = run
    if len({json.dumps(run["terms"]) for run in runs.values()}) > 1:
        raise ValueError(f"{path}: runs under different terms; move those of one kind to another folder")
    return runs


def by_identity(runs: list[Run], measure: str, which: str = "quantized") -> NDArray[np.float64]:
    """Mean of a measure over conditions for each seed and test identity ``[s, i]``, in percent."""
    values: NDArray[np.float64] = np.array([run[which][measure] for run in runs]).mean(2)
    return values


def bootstrap(difference: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of a mean over seeds and identities ``[s, i]``, both drawn anew.

    Identities alone would leave out that the same method ends elsewhere with other batches and clips, which
    is of the size of what is compared here.
    """
    rng = np.random.default_rng(0)
    seeds, identities = difference.shape
    means = [
        difference[np.ix_(rng.integers(seeds, size=seeds), rng.integers(identities, size=identities))].mean()
        for _ in range(BOOTSTRAP)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(jobs: Iterable[Job], runs: dict[str, Run]) -> list[dict[str, Any]]:
    """A row for each network, width and variant that has been run."""
    grouped: dict[tuple[str, str, str], list[Run]] = {}
    against: dict[str, str | None] = {}
    for job in jobs:
        against[job.variant.name] = job.variant.against
        if job.key in runs:
            grouped.setdefault((job.network, job.bits, job.variant.name), []).append(runs[job.key])
    rows = []
    for (network, bits, name), everything in grouped.items():
        done = [run for run in everything if "failure" not in run]
        row: dict[str, Any] = {"network": network, "bits": bits, "method": name, "seeds": len(done)}
        row["failed"] = len(everything) - len(done)
        if done:
            row |= _figures(done)
            row |= _comparison(done, grouped.get((network, bits, against[name] or ""), []), against[name])
        rows.append(row)
    return rows


def _figures(runs: list[Run]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    by_condition = np.array([run["quantized"]["rank1"] for run in runs]).mean((0, 1))
    row |= {f"rank1_{name}": float(value) for name, value in zip(CONDITIONS, by_condition, strict=True)}
    for measure in ("rank1", "ap"):
        row[measure] = float(by_identity(runs, measure).mean())
        row[f"float_{measure}"] = float(by_identity(runs, measure, "float").mean())
    if all("file" in run for run in runs):  # earlier runs did not rank the file
        row["file_ap"] = float(by_identity(runs, "ap", "file").mean())
    sqnr = [run["sqnr_db"] for run in runs]
    row["sqnr_db"], row["sqnr_spread"] = float(np.mean(sqnr)), float(np.ptp(sqnr))
    row["cosine"] = float(np.mean([run["cosine"] for run in runs]))
    row["cpu_seconds"] = float(np.mean([sum(run["seconds"].values()) for run in runs]))
    row["peak_mb"] = max(run["peak_mb"] for run in runs)
    row["idc_left_out"] = sum("left_out" in (run.get("record", {}).get("idc") or {}) for run in runs)
    return row


def _comparison(runs: list[Run], others: list[Run], name: str | None) -> dict[str, Any]:
    """Paired differences to another row, over the seeds that both have."""
    by_seed = {run["job"]["seed"]: run for run in others if "failure" not in run}
    pairs = [(run, by_seed[run["job"]["seed"]]) for run in runs if run["job"]["seed"] in by_seed]
    if not pairs:
        return {}
    mine, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    found: dict[str, Any] = {"against": name}
    for measure in ("rank1", "ap"):
        difference = by_identity(mine, measure) - by_identity(theirs, measure)
        found[f"{measure}_gain"] = float(difference.mean())
        found[f"{measure}_interval"] = bootstrap(difference)
    gains = [a["sqnr_db"] - b["sqnr_db"] for a, b in pairs]
    found["sqnr_gain"], found["sqnr_gains"] = float(np.mean(gains)), gains
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as tables, one for each network and width."""
    lines = [
        f"Synthetic walkers: {TEST_IDENTITIES} test identities, {DISTRACTORS} distractors in the gallery. "
        "rank-1 and mAP in percent of the quantized network in torch, mAP also of its file in onnxruntime; "
        "Δ with the paired 95 % interval over seeds and identities; SQNR of embeddings.",
    ]
    sections = dict.fromkeys((row["network"], row["bits"]) for row in rows)
    for network, bits in sections:
        chosen = [row for row in rows if (row["network"], row["bits"]) == (network, bits)]
        shown = next((row for row in chosen if "rank1" in row), None)
        if shown is None:
            continue
        lines += ["", f"### {network}, {bits}", ""]
        lines.append(f"Float: rank-1 {shown['float_rank1']:.2f}, mAP {shown['float_ap']:.2f}.")
        lines += [
            "",
            "| method | seeds | NM | BG | CL | rank-1 | mAP | mAP, file | SQNR, dB | against | Δ rank-1 |"
            " Δ mAP | Δ SQNR | CPU s | MB |",
            "|---|---" + "|---:" * 7 + "|---" + "|---:" * 5 + "|",
        ]
        lines += [_line(row) for row in chosen]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    if "rank1" not in row:
        return f"| {row['method']} | 0 | refused: {row['failed']} runs |" + " |" * 12
    left_out = f" (IDC left out in {row['idc_left_out']})" if row["idc_left_out"] else ""
    cells = [row["method"] + left_out, str(row["seeds"])]
    cells += [f"{row[f'rank1_{c}']:.1f}" for c in CONDITIONS]
    cells += [f"{row['rank1']:.2f}", f"{row['ap']:.2f}"]
    cells += [f"{row['file_ap']:.2f}" if "file_ap" in row else "–", f"{row['sqnr_db']:.2f}"]
    if "rank1_gain" in row:
        cells.append(row["against"])
        for key in ("rank1", "ap"):
            low, high = row[f"{key}_interval"]
            cells.append(f"{row[f'{key}_gain']:+.2f} [{low:+.2f}, {high:+.2f}]")
        cells.append(f"{row['sqnr_gain']:+.2f}")
    else:
        cells += ["", "", "", ""]
    cells += [f"{row['cpu_seconds']:.0f}", f"{row['peak_mb']}"]
    return "| " + " | ".join(cells) + " |"


def write_tables(jobs: list[Job], runs: dict[str, Run], folder: Path) -> int:
    """Write ``ablation.md`` and ``ablation.json``; gives the number of rows."""
    rows = summarise(jobs, runs)
    for name, text in (("ablation.md", markdown(rows)), ("ablation.json", json.dumps(rows, indent=1) + "\n")):
        beside = folder / f"{name}.part"
        beside.write_text(text)
        os.replace(beside, folder / name)
    return len(rows)
