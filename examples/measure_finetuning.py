"""What fine-tuning gains on a small network: embedding SQNR on unseen people, by sequences and steps.

    python examples/measure_finetuning.py --widths 4,2 --activations 4 --pools 250,1000,2000 --steps 900

Nine convolutions and a fully connected layer per part, random weights, silhouettes of 32×22, 6 frames, every
layer at the stated widths. 64 sequences calibrate, or as many as requested. Up to 1,000 are of people outside
the pool; more are of people in it. 80 sequences of other people are measured.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import click
import numpy as np
import torch
from measure_sqnr import NineConvolutions
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.optim.swa_utils import update_bn

import qgait_ptq as qg
from qgait_ptq.config import FinetuneConfig, IdcConfig, LayerBits
from qgait_ptq.gait import (
    Condition,
    GaitDataset,
    PackedSilhouettes,
    Split,
    embed_dataset,
    embedding_sqnr,
    render_walkers,
)

SIZE, FRAMES = (32, 22), 6
FIRST_LEARNED, FIRST_CALIBRATION, FIRST_MEASURED = 5000, 2000, 3000
MOST_APART = FIRST_MEASURED - FIRST_CALIBRATION  # calibration sequences of people outside the pool
CALIBRATION = 64  # sequences; those of the batch norms, too
ONE_WALK = ((Condition.NORMAL, 1),)


def render(split: Split, count: int, first: int) -> GaitDataset:
    """Return one walk of each of `count` people: 6 frames over a gait cycle, at half the size."""
    full = render_walkers(split, count, first=first, trials=ONE_WALK, views_per_trial=1)
    every = 4  # frames of a gait cycle between two that are taken
    records = [
        replace(record, load=PackedSilhouettes(shrink(silhouettes[: every * FRAMES : every])))
        for silhouettes, record in full
    ]
    return GaitDataset(records, full.description)


def shrink(silhouettes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return silhouettes ``[s, 64, 44]`` as ``[s, 32, 22]``: foreground where half of four pixels are."""
    quarters = silhouettes.reshape(len(silhouettes), SIZE[0], 2, SIZE[1], 2).mean((2, 4))
    return np.where(quarters > 127, 255, 0).astype(np.uint8)


def make_network() -> NineConvolutions:
    """Return the network with batch norm statistics of a real pass, the same for any number of sequences."""
    torch.manual_seed(0)
    network = NineConvolutions(parts=8)
    data = render(Split.CALIBRATION, CALIBRATION, FIRST_CALIBRATION)
    batch = torch.stack([torch.from_numpy(silhouettes).float() / 255 for silhouettes, _ in data])
    update_bn([batch], network)
    return network.eval()


def calibrate(
    network: NineConvolutions,
    data: qg.GaitData,
    widths: tuple[int, int],
    tuning: FinetuneConfig,
    refined_ranges: bool,
) -> qg.State:
    """Calibrate with every layer at the same widths."""
    bits = {"weight_bits": widths[0], "activation_bits": widths[1]}
    config = qg.QuantConfig(
        **bits,
        layers={"*": LayerBits(**bits)},
        calibration_sequences=len(data.calibration),
        refined_ranges=refined_ranges,
        idc=IdcConfig(enabled=False),
        finetune=tuning,
    )
    return qg.calibrate(qg.prepare(network, data, config, device="cpu"))


def sqnr(state: qg.State, data: GaitDataset) -> float:
    """Return the embedding SQNR in dB on unseen people."""
    wanted, given = embed_dataset(data, [state.network, state.quantized], SIZE)
    return embedding_sqnr(wanted, given)


def numbers(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    """Read numbers with commas between."""
    return [int(number) for number in value.split(",")]


@click.command()
@click.option("--widths", default="4,3,2", callback=numbers, show_default=True, help="Bits of weights.")
@click.option("--activations", default=4, show_default=True, help="Bits of activations.")
@click.option(
    "--pools", default="250,1000", callback=numbers, show_default=True, help="Sequences of the pool."
)
@click.option("--steps", default="300,900", callback=numbers, show_default=True, help="End-to-end steps.")
@click.option(
    "--calibration",
    "calibrating",
    default=CALIBRATION,
    show_default=True,
    type=click.IntRange(min=CALIBRATION),
    help="Sequences of the corrections.",
)
@click.option("--refined-ranges", is_flag=True, help="Refine ranges during rounding.")
@click.option("--blocks", default="0,200", callback=numbers, show_default=True, help="Steps of each block.")
def main(
    widths: list[int],
    activations: int,
    pools: list[int],
    steps: list[int],
    calibrating: int,
    refined_ranges: bool,
    blocks: list[int],
) -> None:
    """Print a table."""
    first = FIRST_CALIBRATION if calibrating <= MOST_APART else FIRST_LEARNED
    calibration = render(Split.CALIBRATION, calibrating, first)
    test = render(Split.CALIBRATION, 80, FIRST_MEASURED)
    learned = render(Split.CALIBRATION, max(pools), FIRST_LEARNED)
    network = make_network()
    table = Table(title=f"SQNR in dB on unseen people, {torch.get_num_threads()} threads")
    for heading in ("widths", "sequences", "steps of blocks", "steps", "SQNR", "kept", "CPU s"):
        table.add_column(heading, justify="right")
    for bits in widths:
        label = f"W{bits}A{activations}"
        data = qg.GaitData(calibration, test)
        before = calibrate(network, data, (bits, activations), FinetuneConfig(), refined_ranges)
        table.add_row(label, "", "", "", f"{sqnr(before, test):.2f}", "start", "")
        for pool, of_blocks, count in itertools.product(pools, blocks, steps):
            began = time.process_time()
            more = qg.GaitData(calibration, test, unlabelled=learned.choose(pool, 0))
            tuning = FinetuneConfig(enabled=True, unlabelled=pool, steps=count, block_steps=of_blocks)
            state = calibrate(network, more, (bits, activations), tuning, refined_ranges)
            seconds, kept = time.process_time() - began, state.record["finetune"]["kept"]
            cells = (pool, of_blocks, count, f"{sqnr(state, test):.2f}", kept, f"{seconds:.0f}")
            table.add_row(label, *map(str, cells))
            click.echo(f"{label} {' '.join(map(str, cells))}", err=True)
    Console().print(table)


if __name__ == "__main__":
    main()
