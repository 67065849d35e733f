"""How fast ``model.pt2`` is in PyTorch itself, compiled by inductor: float beside W8A8.

    python examples/measure_torch_file.py

GaitBase at a quarter of the channels with random weights, as in docs/speed.md, 1 × 30 frames, one thread, CPU
time, in turn. Inductor needs a C++ compiler; it compiles for some minutes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch
import torch._inductor.config
from measure_models import make_network, render
from measure_speed import CALIBRATION, FRAME, RANGES_ALONE, quarter_gaitbase
from torch.nn.functional import cosine_similarity

import qgait_ptq as qg
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.evaluation.benchmark import summarize
from qgait_ptq.evaluation.sampling import interleave
from qgait_ptq.exporters.torch_program import export_program
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.gait.walkers.population import Split
from qgait_ptq.gait.zoo import NETWORKS

NETWORK, FRAMES = "gaitbase-quarter", 30


@click.command()
@click.option("--rounds", default=7, show_default=True)
def main(rounds: int) -> None:
    """Compile and measure."""
    torch.set_num_threads(1)
    NETWORKS[NETWORK] = quarter_gaitbase
    calibration = render(Split.CALIBRATION, CALIBRATION, (FRAME,))
    network = make_network(NETWORK, calibration)
    config = QuantConfig(**RANGES_ALONE)
    state = qg.calibrate(qg.prepare(network, qg.GaitData(calibration, calibration), config, device="cpu"))
    captured, quantized = state.captured, state.quantized
    program = torch.export.load(io.BytesIO(export_program(quantized, captured)))
    torch._inductor.config.freezing = True
    silhouettes = network_batch(*calibration[0], FRAME, FRAMES)
    runs: dict[str, Any] = {
        "float": network,
        "float, compiled": torch.compile(network),
        "W8A8, compiled": torch.compile(program.module()),
    }
    with torch.inference_mode():
        expected, given = quantized(silhouettes), runs["W8A8, compiled"](silhouettes)
        calls: list[Callable[[], Any]] = [partial(run, silhouettes) for run in runs.values()]
        samples = interleave(calls, rounds, seconds=0.5)
    print(f"{'':16s} {'CPU ms':>8s} {'× float':>8s}")
    for name, own in zip(runs, samples, strict=True):
        timing = summarize(own, samples[0])
        print(f"{name:16s} {timing.cpu_ms[0]:8.1f} {timing.faster[0]:8.2f}")
    cosine = cosine_similarity(expected.flatten(), given.flatten(), dim=0)
    print(f"cosine of W8A8 in torch with the simulation: {float(cosine):.7f}")


if __name__ == "__main__":
    main()
