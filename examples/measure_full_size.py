"""Time, peak memory and file sizes of quantizing a full-size GaitBase (7 M parameters) on this machine.

    python examples/measure_full_size.py
    python examples/measure_full_size.py --stages    # W4A4 with corrections and IDC: many minutes
    python examples/measure_full_size.py --finetune --device cuda    # and with fine-tuning

The weights are random, with batch norm statistics of a real pass: time, memory and size do not depend on
what the network has learned.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim.swa_utils import update_bn

import qgait_ptq as qg
from qgait_ptq.calibration import ChooseClips, SetRanges
from qgait_ptq.config import FinetuneConfig, IdcConfig
from qgait_ptq.gait import Condition, GaitDataset, Split, network_batch, render_walkers
from qgait_ptq.gait.zoo import GaitBase

FRAME, SEQUENCES, FRAMES = (64, 44), 64, 30
VARIANTS = ((8, 8, 8), (4, 8, 8), (4, 4, 8), (4, 4, 4))  # weight, activation and edge bits


def calibration_data() -> GaitDataset:
    """64 synthetic sequences of 30 frames, ``[30, 64, 44]`` each."""
    trials = ((Condition.NORMAL, 1),)
    walks = render_walkers(Split.CALIBRATION, SEQUENCES // 2, trials=trials, views_per_trial=2)
    return GaitDataset.from_pairs(
        (silhouettes[np.arange(FRAMES) % len(silhouettes)], record.subject) for silhouettes, record in walks
    )


def initialise(network: nn.Module, data: GaitDataset) -> nn.Module:
    """Set batch norm statistics from one real pass."""
    batch = network_batch(*data[0], FRAME)
    update_bn([torch.cat([batch, batch.flip(3)])], network)
    return network.eval()


def peak_gigabytes() -> float:
    """Largest resident set of this process so far; macOS counts bytes, Linux kilobytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@click.command()
@click.option("--stages", is_flag=True, help="W4A4 with all default stages, on 128 sequences of 16 people.")
@click.option("--finetune", is_flag=True, help="The same, and fine-tuning on 2,000 sequences.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device for --stages and --finetune.",
)
def main(stages: bool, finetune: bool, device: str) -> None:
    """Quantize at several widths and print what it took."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("torch finds no GPU on this machine", param_hint="--device")
    torch.manual_seed(0)
    data = calibration_data()
    network = initialise(GaitBase(), data)
    console = Console()
    if stages or finetune:
        console.print(measure_stages(network, finetune, device))
    else:
        console.print(measure_ranges(network, data))


def measure_stages(network: nn.Module, finetune: bool, device: str) -> Table:
    """Capture and the stages at W4A4, and their times."""
    settings = FinetuneConfig(enabled=finetune)
    config = qg.QuantConfig(weight_bits=4, activation_bits=4, finetune=settings)
    listener = Timer()
    workers = os.cpu_count() or 1
    walkers = qg.load_walkers(workers, finetuning=settings.unlabelled if finetune else 0, test_walkers=4)
    started = time.perf_counter()
    prepared = qg.prepare(network, walkers, config, device=device, progress=listener)
    calibrated = qg.calibrate(prepared, progress=listener)
    with listener.stage("export"):
        qg.export(calibrated)
    elapsed = time.perf_counter() - started
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    stages = "default stages and fine-tuning" if finetune else "default stages"
    table = Table(title=f"GaitBase W4A4, {stages}, {where}")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, seconds in listener.seconds.items():
        table.add_row(name, f"{seconds:.0f}")
    table.add_row("all", f"{elapsed:.0f}")
    table.add_row("peak memory, GB", f"{peak_gigabytes():.2f}")
    if device == "cuda":
        table.add_row("peak memory of the GPU, GB", f"{torch.cuda.max_memory_allocated() / 1e9:.2f}")
    return table


class Timer:
    """Listens to stages and keeps how long they took; tells at once, as the stages are long."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[Callable[[], None]]:
        """Time a stage."""
        started = time.perf_counter()
        yield lambda: None
        self.seconds[name] = time.perf_counter() - started
        self.note(f"{name}: {self.seconds[name]:.0f} s")

    def note(self, text: str) -> None:
        """Print a line."""
        click.echo(text)


def measure_ranges(network: nn.Module, data: GaitDataset) -> Table:
    """Capture, ranges alone, and export at several widths."""
    table = Table(
        title=f"GaitBase, {SEQUENCES} sequences of {FRAMES} frames, {torch.get_num_threads()} threads"
    )
    for heading in (
        "",
        "capture, s",
        "ranges, s",
        "export, s",
        "total, s",
        "peak so far, GB",
        "MB",
        "smaller",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    for weight_bits, activation_bits, edge_bits in VARIANTS:
        config = qg.QuantConfig(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            edge_bits=edge_bits,
            input_type="float32",
            idc=IdcConfig(enabled=False),
        )
        prepared = qg.prepare(network, qg.GaitData(data, data), config, device="cpu")
        state = qg.run_stages([ChooseClips(), SetRanges()], prepared)
        started = time.perf_counter()
        model = qg.to_onnx(state)
        seconds = (state.seconds["capture"], state.seconds["ranges"], time.perf_counter() - started)
        peak = peak_gigabytes()
        float_size = qg.to_onnx(state, quantized=False).ByteSize()
        table.add_row(
            f"{config.label}, edges {edge_bits}",
            *(f"{value:.1f}" for value in (*seconds, sum(seconds))),
            f"{peak:.2f}",
            f"{model.ByteSize() / 1e6:.2f}",
            f"{float_size / model.ByteSize():.2f}×",
        )
    return table


if __name__ == "__main__":
    main()
