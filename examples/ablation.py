"""What each stage is worth: the method, its alternatives and its controls on synthetic walkers.

    python examples/ablation.py --out docs/ablation --jobs 2

Every run is a line of OUT/runs.jsonl, so a killed experiment goes on where it was, and a new variant costs
only its own runs. The table is written after every run: OUT/ablation.md and OUT/ablation.json. Walkers and
states that runs share lie in WORK and may be removed at any time.

Each seed has its own calibration walkers (16 identities, at most 128 sequences), its own choice of them and
its own batches. All runs are judged on the same test walkers, whom nothing else has seen, against a gallery
with distractors. A method is compared with what it builds on by a paired bootstrap over the test identities.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from fnmatch import fnmatch
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
from ablation_runs import TERMS, checkpoint_digest, execute, render_missing
from ablation_tables import read_runs, write_tables
from ablation_variants import plan_jobs


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="docs/ablation", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default="ablation-work", show_default=True)
@click.option("--gaitbase", default="examples/models/gaitbase-small.pt", show_default=True)
@click.option("--gaitset", default="examples/models/gaitset-small.pt", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--jobs", "workers", default=1, show_default=True, help="Processes.")
@click.option("--threads", default=1, show_default=True, help="Of each process.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--only", default="*", show_default=True, help="Pattern over 'network bits method seed N'.")
@click.option("--table", is_flag=True, help="Write the tables from what there is, and run nothing.")
def main(
    out: Path,
    work: Path,
    gaitbase: str,
    gaitset: str,
    seeds: int,
    workers: int,
    threads: int,
    device: str,
    only: str,
    table: bool,
) -> None:
    """Run what has not been run yet and write OUT/ablation.md and OUT/ablation.json."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("torch finds no GPU on this machine", param_hint="--device")
    out.mkdir(parents=True, exist_ok=True)
    jobs = plan_jobs({"gaitbase-small": gaitbase, "gaitset-small": gaitset}, seeds)
    runs = read_runs(out / "runs.jsonl")
    if not table:
        _check_comparable(runs, {job.network: job.checkpoint for job in jobs}, out)
    wanted = [job for job in jobs if job.key not in runs and fnmatch(job.title, only)]
    if wanted and not table:
        render_missing(work / "walkers", seeds)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes to come
        titles = {job.key: job.title for job in wanted}
        # Leaving the pool ends its processes, also where this one is asked to end.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        with get_context("spawn").Pool(workers) as pool:
            finished = pool.imap_unordered(
                partial(execute, work=work, threads=threads, device=device), wanted
            )
            for count, run in enumerate(finished, 1):
                with (out / "runs.jsonl").open("a") as file:
                    file.write(json.dumps(run) + "\n")
                runs[run["key"]] = run
                write_tables(jobs, runs, out)
                click.echo(f"{count}/{len(wanted)} {titles[run['key']]}")
    click.echo(f"{write_tables(jobs, runs, out)} rows in {out}/ablation.md")


def _check_comparable(runs: dict[str, Any], checkpoints: dict[str, str], out: Path) -> None:
    """Refuse to add runs to others that were made under other terms, or with another network.

    Raises:
        click.ClickException: they differ.
    """
    for run in runs.values():
        network = run["job"]["network"]
        of_other_network = network in checkpoints and run.get("checkpoint_sha256") not in (
            None,
            checkpoint_digest(checkpoints[network]),
        )
        if run["terms"] != TERMS or of_other_network:
            what = "another checkpoint" if of_other_network else "other terms"
            raise click.ClickException(
                f"{out}/runs.jsonl has runs with {what}; choose another --out, or add --table for its tables"
            )


if __name__ == "__main__":
    main()
