"""How fast ``model.pt2`` is in PyTorch itself, compiled by inductor: float beside W8A8.

    python examples/measure_torch_file.py

GaitBase at a quarter of the channels with random weights, as in docs/speed.md, 1 × 30 frames, one thread, CPU
time, in turn. Inductor needs a C++ compiler; it compiles for some minutes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch
from measure_models import make_network, render
from measure_speed import CALIBRATION, FRAME, RANGES_ALONE, quarter_gaitbase
from torch.nn.functional import cosine_similarity

import qgait_ptq as qg
from qgait_ptq.evaluation import benchmark_calls
from qgait_ptq.gait import Split, network_batch

FRAMES = 30


@click.command()
@click.option("--rounds", default=7, show_default=True)
def main(rounds: int) -> None:
    """Compile and measure."""
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"  # weights are constants; inductor reads it when first used
    calibration = render(Split.CALIBRATION, CALIBRATION, (FRAME,))
    network = make_network(quarter_gaitbase, calibration)
    data = qg.GaitData(calibration, calibration)
    result = qg.quantize(network, data, qg.QuantConfig(**RANGES_ALONE), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        program = torch.export.load(result.save(folder, torch_file=True) / "model.pt2")
    silhouettes = network_batch(*calibration[0], FRAME, FRAMES)
    runs: dict[str, Any] = {
        "float": network,
        "float, compiled": torch.compile(network),
        "W8A8, compiled": torch.compile(program.module()),
    }
    with torch.inference_mode():
        expected, given = result.model(silhouettes), runs["W8A8, compiled"](silhouettes)
        calls: list[Callable[[], Any]] = [partial(run, silhouettes) for run in runs.values()]
        timings = benchmark_calls(calls, rounds, seconds=0.5)
    print(f"{'':16s} {'CPU ms':>8s} {'× float':>8s}")
    for name, timing in zip(runs, timings, strict=True):
        print(f"{name:16s} {timing.cpu_ms[0]:8.1f} {timing.faster[0]:8.2f}")
    cosine = cosine_similarity(expected.flatten(), given.flatten(), dim=0)
    print(f"cosine of W8A8 in torch with the simulation: {float(cosine):.7f}")


if __name__ == "__main__":
    main()
