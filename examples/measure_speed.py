"""How fast, small and sparing of memory the files are: networks, runtimes and widths.

    python examples/measure_speed.py --out docs

Writes OUT/speed.md from OUT/speed.json, which keeps one table for each kind of processor: with VNNI, without,
or ARM. Networks have random weights, with batch norm statistics of a real pass, as in
docs/models.md; ranges alone are calibrated, for speed does not depend on more.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import onnx
from measure_models import CALIBRATION_FRAMES, make_network, render

import qgait_ptq as qg
from qgait_ptq.config import IdcConfig
from qgait_ptq.evaluation import BenchmarkSetting, FileBenchmark, benchmark_files
from qgait_ptq.gait import Split
from qgait_ptq.gait.zoo import NETWORKS, GaitBase
from qgait_ptq.runtime import LONGEST_PIECE, describe_processor, saturates

FRAME, CALIBRATION = (64, 44), 4
RANGES_ALONE: dict[str, Any] = {
    "calibration_frames": CALIBRATION_FRAMES,
    "correction_frames": CALIBRATION_FRAMES,
    "equalization": "none",
    "rounding": "nearest",
    "bias_correction": False,
    "idc": IdcConfig(enabled=False),
    "minimum_agreement": -1.0,
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
python examples/measure_speed.py --rounds 7
tests/processors/without-vnni python examples/measure_speed.py --rounds 7   # the same machine without VNNI
```

One thread; CPU time of a call, files in turn, medians of the rounds, ratios within rounds. *Peak* is the
share of what large convolutions of the same number type reach in that runtime. RAM is the peak of a process
that loads and runs a file, less that of one with a network of one operator, which is the runtime's. Widths
are the ones named in all layers, the first and the last, too; weights of 4 bits are stored two to a byte.
*Input 1* has silhouettes of one bit (`--input-bits 1`). Weights are in the safe range: the files give the
same integers on every processor, see [Processors](processors.md).

## Times faster than float

"""
TABLE = """
## {kind}

{machine}, {versions}, {rounds} rounds.

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
print(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6)
"""


def quarter_gaitbase() -> GaitBase:
    """GaitBase with a quarter of the channels."""
    return GaitBase(channels=(16, 32, 64, 128), embedding=64)


BUILDERS = NETWORKS | {"gaitbase-quarter": quarter_gaitbase}


def build(name: str, target: str, widths: tuple[str, ...], folder: Path) -> list[Path]:
    """The float file and one for each width."""
    calibration = render(Split.CALIBRATION, CALIBRATION, (FRAME,))
    network = make_network(BUILDERS[name], calibration)
    paths = [folder / f"{name}-{target}-float.onnx"]
    for label in widths:
        weight_bits, activation_bits = PLAIN[label.removesuffix(ONE_BIT)]
        config = qg.QuantConfig(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            input_bits=1 if label.endswith(ONE_BIT) else None,
            edge_bits=weight_bits if weight_bits == activation_bits else 8,
            layers={} if weight_bits == activation_bits else {"*": {"weight_bits": weight_bits}},
            target=target,
            **RANGES_ALONE,
        )
        result = qg.quantize(network, qg.GaitData(calibration, calibration), config, device="cpu")
        paths.append(folder / f"{name}-{target}-{label}.onnx")
        onnx.save(result.onnx_model, paths[-1])
        if result.float_model is not None and not paths[0].exists():
            onnx.save(result.float_model, paths[0])
    return paths


def rows(label: str, runtime: str, measured: list[FileBenchmark]) -> list[dict[str, Any]]:
    """One for each file."""
    return [
        {
            "network": label,
            "runtime": runtime,
            "file": one.path.stem.rsplit("-", 1)[1],
            "cpu_ms": one.timing.cpu_ms[0],
            "faster": list(one.timing.faster),
            "peak_share": one.peak_share,
            "memory_mb": one.peak_memory_mb,
            "megabytes": one.megabytes,
        }
        for one in measured
    ]


def table_line(row: dict[str, Any]) -> str:
    """A row of a processor's table."""
    ratio, low, high = row["faster"]
    return (
        f"| {row['network']} | {row['runtime']} | {row['file']} | {row['cpu_ms']:.1f} "
        f"| {ratio:.2f} ({low:.2f}–{high:.2f}) | {row['peak_share']:.0%} | {row['memory_mb']:.0f} "
        f"| {row['megabytes']:.2f} |"
    )


def side_by_side(tables: dict[str, dict[str, Any]]) -> list[str]:
    """The ratios of all processors beside each other."""
    kinds = list(tables)
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for kind, table in tables.items():
        for row in table["rows"]:
            if row["file"] != "float":
                key = (row["network"], row["file"], row["runtime"])
                found.setdefault(key, {})[kind] = row["faster"][0]
    lines = [
        "| network | file | runtime | " + " | ".join(kinds) + " |",
        "|---|---|---|" + "---:|" * len(kinds),
    ]
    for key, ratios in found.items():
        cells = [f"{ratios[kind]:.2f}" if kind in ratios else "" for kind in kinds]
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    return lines


def page(tables: dict[str, dict[str, Any]]) -> str:
    """All of it."""
    text = INTRODUCTION + "\n".join(side_by_side(tables)) + "\n"
    for kind, table in tables.items():
        text += TABLE.format(kind=kind, **table) + "\n".join(map(table_line, table["rows"])) + "\n"
        pairs = ", ".join(f"{frames}: {size:.0f} MB" for frames, size in table["streaming"])
        text += (
            f"\nStreaming, {next(iter(MEASURED.values()))[0]} W8A8 in onnxruntime, peak of a process that "
            f"embeds one sequence of so many frames: {pairs}. From {LONGEST_PIECE + 1} frames on, sequences "
            f"go through in pieces of {LONGEST_PIECE}, through the file's two parts, which are loaded once.\n"
        )
        if table["noisy"]:
            text += "\nOthers used the machine in most rounds of some rows.\n"
    return text


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


def machine() -> tuple[str, str]:
    """The kind of processor, as far as kernels differ by it, and its name with the count of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = f"{names[0] if names else platform.machine()}, {len(names)} cores, {describe_processor()}"
    if platform.machine() in ("arm64", "aarch64"):
        return "ARM64", name
    if saturates("onnxruntime"):
        hidden = (
            ", its AVX-512, VNNI and AMX hidden" if "without_vnni" in os.environ.get("LD_PRELOAD", "") else ""
        )
        return "AVX2, no VNNI", name + hidden
    return "VNNI", name


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="docs", show_default=True)
@click.option("--rounds", default=9, show_default=True)
def main(out: Path, rounds: int) -> None:
    """Measure all on this processor, and write the page."""
    found: list[dict[str, Any]] = []
    noisy = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network, (label, widths) in MEASURED.items():
            for runtime in ("onnxruntime", "openvino"):
                paths = build(network, runtime, widths, folder)
                measured = benchmark_files(paths, BenchmarkSetting(runtime=runtime, rounds=rounds))
                noisy |= any(one.timing.noisy for one in measured)
                found += rows(label, runtime, measured)
                print(*map(table_line, found[-len(paths) :]), sep="\n", flush=True)
        memory = streaming_memory(folder / f"{next(iter(MEASURED))}-onnxruntime-W8A8.onnx")
    kind, described = machine()
    stored = out / "speed.json"
    tables = json.loads(stored.read_text()) if stored.exists() else {}
    tables[kind] = {
        "machine": described,
        "versions": f"onnxruntime {version('onnxruntime')}, OpenVINO {version('openvino')}",
        "rounds": rounds,
        "rows": found,
        "streaming": list(zip(STREAMED, memory, strict=True)),
        "noisy": noisy,
    }
    stored.write_text(json.dumps(tables, indent=1) + "\n")
    (out / "speed.md").write_text(page(tables))


if __name__ == "__main__":
    main()
