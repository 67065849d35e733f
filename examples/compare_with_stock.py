"""The toolkit beside onnxruntime's own quantizer, at its defaults, on the same float graph.

    python examples/compare_with_stock.py

Speed is CPU time of one call on 30 frames with one thread, in turn; cosine is between quantized and float
embeddings of synthetic walkers that did not calibrate. Both calibrate on the same sequences. The network is
GaitBase at full size with random weights and batch norm statistics of a real pass, as in docs/models.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from measure_models import TESTED, make_network, render
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from qgait_ptq.config import IdcConfig, QuantConfig
from qgait_ptq.export.onnx_file import export_float, export_quantized
from qgait_ptq.export.targets import get_target
from qgait_ptq.gait.dataset import GaitDataset
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.gait.walkers.population import Split
from qgait_ptq.planning import plan
from qgait_ptq.progress import Silent
from qgait_ptq.runtime.benchmark import is_noisy, measure
from qgait_ptq.runtime.sessions import open_session, run_session
from qgait_ptq.runtime.workload import Setting
from qgait_ptq.stages import CalibrationRun

FRAME, FRAMES, CALIBRATION = (64, 44), 12, 16


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives onnxruntime's quantizer its sequences."""

    def __init__(self, batches: list[NDArray[np.float32]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next one."""
        batch = next(self.batches, None)
        return None if batch is None else {"silhouettes": batch}


def as_batches(data: GaitDataset, frames: int) -> list[NDArray[np.float32]]:
    """Each sequence as a batch of one, in [0, 1]."""
    return [network_batch(*item, FRAME, frames).numpy() for item in data]


@click.command()
@click.option("--network", default="gaitbase", show_default=True, help="Of docs/models.md.")
@click.option("--rounds", default=9, show_default=True)
def main(network: str, rounds: int) -> None:
    """Quantize with both, and print speed and agreement."""
    calibration = render(Split.CALIBRATION, CALIBRATION, (FRAME,))
    tested = render(Split.TEST, TESTED, (FRAME,))
    config = QuantConfig(calibration_frames=FRAMES, correction_frames=FRAMES, idc=IdcConfig(enabled=False))
    target = get_target(config.target)
    captured, graph, _ = plan(make_network(network, calibration), FRAME, config)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("float", "stock", "qgait_ptq")}
        onnx.save(export_float(graph, captured, target.opset), paths["float"])
        quantize_static(str(paths["float"]), str(paths["stock"]), Reader(as_batches(calibration, FRAMES)))
        quantized = CalibrationRun(config, captured, graph, torch.device("cpu"), Silent()).run(calibration)
        onnx.save(export_quantized(quantized, captured, target, byte_input=True), paths["qgait_ptq"])
        measured = measure(list(paths.values()), Setting(rounds=rounds))
        sessions = {name: open_session(path, threads=1) for name, path in paths.items()}
        embedded = {
            name: np.stack([run_session(session, batch).ravel() for batch in as_batches(tested, 30)])
            for name, session in sessions.items()
        }
    reference = embedded["float"]
    print(f"{'':10s} {'CPU ms':>8s} {'× float':>8s} {'cosine':>8s} {'MB':>6s} {'RAM MB':>7s}")
    for (name, given), one in zip(embedded.items(), measured, strict=True):
        norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(given, axis=1)
        cosine = float(((reference * given).sum(1) / norms).mean())
        timing = one.timing
        print(
            f"{name:10s} {timing.cpu_ms[0]:8.1f} {timing.faster[0]:8.2f} {cosine:8.4f} "
            f"{one.megabytes:6.2f} {one.peak_memory_mb:7.0f}"
        )
    ours, stock = measured[2].timing, measured[1].timing
    print(f"qgait_ptq is {stock.cpu_ms[0] / ours.cpu_ms[0]:.2f} times faster than the stock quantizer's file")
    if is_noisy(measured):
        print("others used the machine in most rounds: these figures are not to be trusted")


if __name__ == "__main__":
    main()
