"""Time, peak memory and file sizes of quantizing a full-size GaitBase (7 M parameters) on this machine.

    python examples/measure_full_size.py
    python examples/measure_full_size.py --stages    # and W4A4 with corrections and IDC: many minutes

The weights are random, with batch norm statistics of a real pass: time, memory and size do not depend on
what the network has learned.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import qgait_ptq as qg
from qgait_ptq.calibration.ranges import calibrate_ranges
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.exporters.onnx_file import export_float, export_quantized
from qgait_ptq.gait.data.sampling import to_network_input
from qgait_ptq.gait.data.sequences import cut_width
from qgait_ptq.gait.data.sources import load_walkers
from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.population import Split, split_identities
from qgait_ptq.gait.walkers.rendering import render_identities
from qgait_ptq.gait.zoo import GaitBase
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.planning import plan
from qgait_ptq.targets.registry import get_target

SEQUENCES, FRAMES = 64, 30
VARIANTS = ((8, 8, 8), (4, 8, 8), (4, 4, 8), (4, 4, 4))  # weight, activation and edge bits


def calibration_batches() -> list[Tensor]:
    """64 synthetic sequences of 30 frames, ``[1, 30, 64, 44]`` each."""
    people = split_identities(Split.CALIBRATION, SEQUENCES // 2)
    walks = render_identities(people, trials=((Condition.NORMAL, 1),), views_per_trial=2)
    return [
        to_network_input(cut_width(silhouettes)[[i % len(silhouettes) for i in range(FRAMES)]])[None]
        for identity in walks
        for _, silhouettes in identity
    ]


def initialise(network: nn.Module, batch: Tensor) -> nn.Module:
    """Set batch norm statistics from one real pass."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.cat([batch, batch.flip(3)]))
    return network.eval()


def peak_gigabytes() -> float:
    """Largest resident set of this process so far; macOS counts bytes, Linux kilobytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@click.command()
@click.option("--stages", is_flag=True, help="W4A4 with all default stages, on 128 sequences of 16 people.")
def main(stages: bool) -> None:
    """Quantize at several widths and print what it took."""
    torch.manual_seed(0)
    batches = calibration_batches()
    network = initialise(GaitBase(), batches[0])
    console = Console()
    if stages:
        console.print(measure_stages(network))
    else:
        console.print(measure_ranges(network, batches))


def measure_stages(network: nn.Module) -> Table:
    """Capture and the default stages at W4A4, and their times."""
    config = QuantConfig(weight_bits=4, activation_bits=4)
    listener = Timer()
    data = load_walkers().calibration
    prepared = qg.prepare(network, qg.GaitData(data, data), config, device="cpu", progress=listener)
    qg.calibrate(prepared, progress=listener)
    table = Table(title=f"GaitBase W4A4, default stages, {torch.get_num_threads()} threads")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, seconds in listener.seconds.items():
        table.add_row(name, f"{seconds:.0f}")
    table.add_row("all", f"{sum(listener.seconds.values()):.0f}")
    table.add_row("peak memory, GB", f"{peak_gigabytes():.2f}")
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


def measure_ranges(network: nn.Module, batches: list[Tensor]) -> Table:
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
        config = QuantConfig(weight_bits=weight_bits, activation_bits=activation_bits, edge_bits=edge_bits)
        seconds: list[float] = []

        @contextmanager
        def timed(seconds: list[float] = seconds) -> Iterator[None]:
            started = time.perf_counter()
            yield
            seconds.append(time.perf_counter() - started)

        with timed():
            captured, graph, _ = plan(network, (64, 44), config)
        with timed():
            quantized = calibrate_ranges(insert_quantizers(graph), batches)
        with timed():
            model = export_quantized(quantized, captured, get_target(config.target))
        peak = peak_gigabytes()
        float_size = export_float(graph, captured, get_target(config.target).opset).ByteSize()
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
