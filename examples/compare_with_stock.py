"""The toolkit beside onnxruntime's own quantizer, at its defaults and with reduced range, on one float graph.

    ORT_DISABLE_TELEMETRY=1 python examples/compare_with_stock.py

Speed is CPU time of one call on 30 frames with one thread, in turn; cosine is between quantized and float
embeddings of synthetic walkers that did not calibrate. Both calibrate on the same sequences. The network is
GaitBase at full size with random weights and batch norm statistics of a real pass, as in docs/models.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import torch
from measure_models import MODELS, TESTED, make_network, render
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static

import qgait_ptq as qg
from qgait_ptq.config import IdcConfig
from qgait_ptq.evaluation import BenchmarkSetting, benchmark_calls, example_inputs
from qgait_ptq.gait import GaitDataset, Split, embedding_cosine, network_batch
from qgait_ptq.gait.zoo import NETWORKS
from qgait_ptq.runtime import describe_processor, open_unguarded, run_session

FRAME, FRAMES, CALIBRATION = (64, 44), 12, 16
# Networks that take silhouettes alone.
COMPARED = [name for name in NETWORKS if name not in MODELS or MODELS[name][1] == ((64, 44),)]
STOCK: dict[str, dict[str, Any]] = {"stock": {}, "stock-reduced": {"reduce_range": True}}


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
@click.option("--network", type=click.Choice(COMPARED), default="gaitbase", show_default=True)
@click.option("--rounds", default=9, show_default=True)
def main(network: str, rounds: int) -> None:
    """Quantize with both, and print speed and agreement."""
    calibration = render(Split.CALIBRATION, CALIBRATION, (FRAME,))
    tested = render(Split.TEST, TESTED, (FRAME,))
    config = qg.QuantConfig(calibration_frames=FRAMES, correction_frames=FRAMES, idc=IdcConfig(enabled=False))
    data = qg.GaitData(calibration, tested)
    prepared = qg.prepare(make_network(NETWORKS[network], calibration), data, config, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("float", *STOCK, "qgait_ptq")}
        onnx.save(qg.to_onnx(prepared, quantized=False), paths["float"])
        for name, options in STOCK.items():
            reader = Reader(as_batches(calibration, FRAMES))
            quantize_static(str(paths["float"]), str(paths[name]), reader, **options)
        onnx.save(qg.export(qg.calibrate(prepared)).file.model, paths["qgait_ptq"])
        # As programs without this toolkit open them: a file whose sums saturate here is measured as it is.
        sessions = {name: open_unguarded(path, threads=1) for name, path in paths.items()}
        sizes = {name: path.stat().st_size / 1e6 for name, path in paths.items()}
    setting = BenchmarkSetting(rounds=rounds)
    calls: list[Callable[[], Any]] = [
        partial(session.infer, *example_inputs(session, setting)) for session in sessions.values()
    ]
    timings = dict(zip(paths, benchmark_calls(calls, rounds, setting.seconds), strict=True))
    embedded = {
        name: np.stack([run_session(session, batch).ravel() for batch in as_batches(tested, 30)])
        for name, session in sessions.items()
    }
    reference = embedded["float"]
    print(f"{describe_processor()}, onnxruntime {onnxruntime.__version__}")
    print(f"{'':13s} {'CPU ms':>8s} {'× float':>8s} {'cosine':>8s} {'MB':>6s}")
    for name, given in embedded.items():
        cosine = float(embedding_cosine(torch.from_numpy(reference), torch.from_numpy(given)).mean())
        timing = timings[name]
        print(f"{name:13s} {timing.cpu_ms[0]:8.1f} {timing.faster[0]:8.2f} {cosine:8.4f} {sizes[name]:6.2f}")
    for name in STOCK:
        faster = timings[name].cpu_ms[0] / timings["qgait_ptq"].cpu_ms[0]
        print(f"qgait_ptq is {faster:.2f} times faster than {name}")
    if any(timing.noisy for timing in timings.values()):
        print("others used the machine in most rounds: these figures are not to be trusted")


if __name__ == "__main__":
    main()
