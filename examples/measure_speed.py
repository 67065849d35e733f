"""How fast, small and sparing of memory the files are: networks, runtimes and widths.

    python examples/measure_speed.py --out docs

Writes OUT/speed.md. Networks have random weights, with batch norm statistics of a real pass, as in
docs/models.md; ranges alone are calibrated, for speed does not depend on more.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import onnx
import torch
from measure_models import CALIBRATION_FRAMES, make_network, render

from qgait_ptq.config import IdcConfig, QuantConfig
from qgait_ptq.export.onnx_file import export_float, export_quantized, write_metadata
from qgait_ptq.export.targets import get_target
from qgait_ptq.gait.walkers.population import Split
from qgait_ptq.gait.zoo import NETWORKS, GaitBase
from qgait_ptq.planning import REPORTED_FRAMES, plan
from qgait_ptq.progress import Silent
from qgait_ptq.runtime.benchmark import Measured, is_noisy, measure
from qgait_ptq.runtime.embedder import LONGEST_PIECE
from qgait_ptq.runtime.workload import Setting
from qgait_ptq.stages import CalibrationRun

FRAME, CALIBRATION = (64, 44), 4
RANGES_ALONE: dict[str, Any] = {
    "calibration_frames": CALIBRATION_FRAMES,
    "correction_frames": CALIBRATION_FRAMES,
    "equalization": "none",
    "rounding": "nearest",
    "bias_correction": False,
    "idc": IdcConfig(enabled=False),
}
PLAIN = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
ONE_BIT = " input 1"  # of a file whose silhouettes have one bit
MEASURED = {
    "gaitbase": ("GaitBase", (*PLAIN, f"W8A8{ONE_BIT}")),
    "gaitbase-quarter": ("GaitBase, ¼ of the channels", ("W8A8", f"W8A8{ONE_BIT}")),
    "gaitset": ("GaitSet", ("W8A8",)),
    "deepgaitv2-p3d": ("DeepGaitV2-P3D", ("W8A8",)),
}
STREAMED = (30, 60, 600, 3000)  # frames
INTRODUCTION = """# Speed

Files for their runtimes beside the float file of the same network, 1 × 30 frames. Made by

```sh
python examples/measure_speed.py --rounds {rounds}
```

{machine}. One thread; CPU time of a call, files in turn, medians of {rounds} rounds, ratios within
rounds. *Peak* is the share of what large convolutions of the same number type reach in that runtime. RAM is
the peak of a process that loads and runs a file, less that of one with a network of one operator, which is
the runtime's. Widths are the ones named in all layers, the first and the last, too; weights of 4 bits are
stored two to a byte. *Input 1* has silhouettes of one bit (`--input-bits 1`).

| network | runtime | file | CPU ms | × float | peak | RAM MB | MB |
|---|---|---|---:|---:|---:|---:|---:|
"""
STREAM = """
import sys, numpy as np, resource
from pathlib import Path
import qgait_ptq as qg
embedder = qg.Embedder(sys.argv[1], threads=1)
embedder(np.random.default_rng(0).integers(0, 256, (int(sys.argv[2]), 64, 44), dtype=np.uint8))
status = Path("/proc/self/status").read_text()
print(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000)
"""


def quarter_gaitbase() -> GaitBase:
    """GaitBase with a quarter of the channels."""
    return GaitBase(channels=(16, 32, 64, 128), embedding=64)


def build(name: str, target: str, widths: tuple[str, ...], folder: Path) -> list[Path]:
    """The float file and one for each width."""
    calibration = render(Split.CALIBRATION, CALIBRATION, (FRAME,))
    network = make_network(name, calibration)
    paths = [folder / f"{name}-{target}-float.onnx"]
    for label in widths:
        weight_bits, activation_bits = PLAIN[label.removesuffix(ONE_BIT)]
        config = QuantConfig(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            input_bits=1 if label.endswith(ONE_BIT) else None,
            edge_bits=weight_bits if weight_bits == activation_bits else 8,
            layers={} if weight_bits == activation_bits else {"*": {"weight_bits": weight_bits}},
            target=target,
            **RANGES_ALONE,
        )
        captured, graph, layers = plan(network, FRAME, config)
        quantized = CalibrationRun(config, captured, graph, torch.device("cpu"), Silent()).run(calibration)
        model = export_quantized(quantized, captured, get_target(target), byte_input=True)
        description: dict[str, Any] = {
            "model": {
                "frames": None,
                "raw": False,
                "streams": True,
                "macs": sum(layer.macs for layer in layers),
                "macs_frames": REPORTED_FRAMES,
            },
            "target": {"name": target, "runtimes": list(get_target(target).runtimes)},
        }
        write_metadata(model, description)
        paths.append(folder / f"{name}-{target}-{label}.onnx")
        onnx.save(model, paths[-1])
        if not paths[0].exists():
            float_model = export_float(graph, captured, get_target(target).opset)
            write_metadata(float_model, description)
            onnx.save(float_model, paths[0])
    return paths


def rows(label: str, runtime: str, measured: list[Measured]) -> list[str]:
    """Of the table."""
    lines = []
    for one in measured:
        kind = one.path.stem.rsplit("-", 1)[1]
        ratio, low, high = one.timing.faster
        faster = f"{ratio:.2f} ({low:.2f}–{high:.2f})"
        lines.append(
            f"| {label} | {runtime} | {kind} | {one.timing.cpu_ms[0]:.1f} | {faster} | {one.peak_share:.0%} "
            f"| {one.peak_memory_mb:.0f} | {one.megabytes:.2f} |"
        )
    return lines


def streaming_memory(path: Path) -> list[float]:
    """Peak memory of processes that embed shorter and longer sequences, in MB."""
    return [
        float(
            subprocess.run(  # noqa: S603 - ourselves
                [sys.executable, "-c", STREAM, str(path), str(frames)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for frames in STREAMED
    ]


def processor() -> str:
    """Name and count of the cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = " ".join(line for line in lines if line.startswith("flags"))
    known = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    return f"{names[0] if names else platform.machine()}, {len(names)} cores, {', '.join(known) or 'no VNNI'}"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="docs", show_default=True)
@click.option("--rounds", default=9, show_default=True)
def main(out: Path, rounds: int) -> None:
    """Measure all, and write the page."""
    NETWORKS["gaitbase-quarter"] = quarter_gaitbase
    lines, noisy = [], False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network, (label, widths) in MEASURED.items():
            for runtime in ("onnxruntime", "openvino"):
                paths = build(network, runtime, widths, folder)
                measured = measure(paths, Setting(runtime=runtime, rounds=rounds))
                noisy |= is_noisy(measured)
                lines += rows(label, runtime, measured)
                print(*lines[-len(paths) :], sep="\n", flush=True)
        memory = streaming_memory(folder / f"{next(iter(MEASURED))}-onnxruntime-W8A8.onnx")
    text = INTRODUCTION.format(machine=processor(), rounds=rounds) + "\n".join(lines) + "\n"
    pairs = ", ".join(f"{frames}: {size:.0f} MB" for frames, size in zip(STREAMED, memory, strict=True))
    streamed = next(iter(MEASURED.values()))[0]
    text += (
        f"\nStreaming, {streamed} W8A8 in onnxruntime, peak of a process that embeds one sequence of so "
        f"many frames: {pairs}. From {LONGEST_PIECE + 1} frames on, sequences go through in pieces of "
        f"{LONGEST_PIECE}, through the file's two parts, which are cut and loaded once.\n"
    )
    if noisy:
        text += "\nOthers used the machine in most rounds of some rows.\n"
    (out / "speed.md").write_text(text)


if __name__ == "__main__":
    main()
