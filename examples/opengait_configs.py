"""Every configuration of OpenGait: built with OpenGait's code, captured, quantized, exported, compared.

    python examples/opengait_configs.py /path/to/OpenGait --out docs

Writes a section of OUT/models.md from OUT/opengait.json, which keeps what has been measured: a killed run
goes on where it was. Each configuration is built and captured. The first of each network and input is also
quantized. Weights are random, with batch norm statistics of a real pass.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from measure_models import OPENGAIT_SECTION, OneInput, describe, split_page
from opengait_inputs import adapt, frame_shapes, render, why_unsupported
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import qgait_ptq as qg
from qgait_ptq.config import IdcConfig
from qgait_ptq.errors import DataError, QgaitError
from qgait_ptq.gait import GaitData, GaitDataset, Split, embedding_cosine, network_batch
from qgait_ptq.gait.opengait import OpenGaitConfig, make_opengait_network, read_opengait_config

CALIBRATION, TESTED, FRAMES = 4, 2, 12
LENGTHS = (2, 12, 61)  # frames of the sequences that are embedded: below, in and above those of the capture
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INTRODUCTION = f"""{OPENGAIT_SECTION}

OpenGait's own networks, unedited, at commit {{commit}}. Made by

```sh
python examples/opengait_configs.py /path/to/OpenGait
```

The command builds each configuration in `configs/` with OpenGait's code, and captures it. It quantizes the
first configuration of each network and input to W8A8, with {CALIBRATION} synthetic sequences and without IDC.
Weights are random.

- *configurations*: number of YAML files for this network and this input that are captured; their names are in
  `opengait.json`.
- *frames*: frame counts that the file takes.
- *int8*: share of the multiply-accumulates that onnxruntime runs on integers. Products of two activations, as
  in attention, run in float.
- *cosine*: smallest cosine between the file and OpenGait's network, for sequences of {{lengths}} frames.
- *file*: smallest cosine between the file and the simulation, for the same sequences.

"""


class InEval(OneInput):
    """A network in eval mode, of which only the batch norms can be in training mode."""

    def train(self, mode: bool = True) -> InEval:
        """Set the mode of the batch norms: OpenGait's networks expect other inputs in training."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, BATCH_NORMS):
                module.train(mode)
        return self


def build(config: OpenGaitConfig, data: GaitDataset) -> nn.Module:
    """Return a network with random weights and with batch norm statistics of one real pass."""
    torch.manual_seed(0)
    network = adapt(make_opengait_network(config), config)
    shape = data[0][0].shape[1:]
    batch = torch.cat([network_batch(*data[i], shape, config.frames or FRAMES) for i in range(TESTED)])
    with suppress(Exception):  # a network that does not run is explained when it is captured
        update_bn([batch], InEval(network, data))
    return network.eval()


def measure(config: OpenGaitConfig, is_first: bool) -> dict[str, Any]:
    """Build and capture a configuration; quantize it too if it is the first of its kind."""
    calibration, tested = (
        render(config, split, count, config.frames or FRAMES)
        for split, count in ((Split.CALIBRATION, CALIBRATION), (Split.TEST, TESTED))
    )
    network = build(config, calibration)
    settings = qg.QuantConfig(
        calibration_frames=FRAMES,
        correction_frames=FRAMES,
        input_type="float32",
        idc=IdcConfig(enabled=False),
    )
    prepared = qg.prepare(
        network, GaitData(calibration, tested), settings, device="cpu", frames=config.frames
    )
    captured = prepared.captured
    found: dict[str, Any] = {"frames": str(captured.frame_counts), "batch": captured.batch}
    if is_first:
        state = qg.export(qg.calibrate(prepared))
        found |= describe(state)
        found["frames"], found["batch"] = str(state.captured.frame_counts), state.captured.batch
        found |= compare(config, InEval(network, calibration).eval(), state)
        found["versions"] = f"torch {version('torch')} and onnxruntime {version('onnxruntime')}"
    return found


def compare(config: OpenGaitConfig, network: nn.Module, state: qg.State) -> dict[str, Any]:
    """Embed sequences of several lengths with the file, as an application does, and with the network."""
    result = qg.evaluate(state)
    cosines: list[float] = []
    parities: list[float] = []
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sequences are repeated or cut, which is asked for here
        embedder = qg.Embedder(result.save(folder) / "model.onnx")
        for length in dict.fromkeys((*LENGTHS, embedder.frames or LENGTHS[0])):
            sequence, record = render(config, Split.TEST, 1, length)[0]
            try:
                embedding = torch.from_numpy(embedder(parts_of(sequence, embedder)))
            except DataError as error:
                refused[str(length)] = str(error)
                continue
            batch = network_batch(sequence, record, embedder.frame_shape, embedder.frame_counts)
            with torch.inference_mode():
                cosines.append(cosine(embedding, network(batch)))
                parities.append(cosine(embedding, result.simulation(batch)))
    return {"cosine": min(cosines), "parity": min(parities), "refused": refused}


def parts_of(sequence: np.ndarray[Any, Any], embedder: qg.Embedder) -> Any:
    """Return a sequence as an application has it: the arrays of several inputs, one by one."""
    layout = embedder.layout
    if layout is None:
        return sequence
    places = zip(layout.inputs, layout.starts, strict=True)
    return tuple(
        (sequence[:, at : at + part.size] * (255 if index == 0 else 1))
        .reshape(len(sequence), *part.shape)
        .astype(np.uint8 if index == 0 else np.float32)
        for index, (part, at) in enumerate(places)
    )


def cosine(embedding: Tensor, reference: Tensor) -> float:
    """Return the cosine between an embedding ``[p, c]`` and one of a network, ``[1, c, p]`` or ``[1, c]``."""
    parts = reference[0].reshape(reference.shape[1], -1).T
    return float(embedding_cosine(embedding.T[None], parts.T[None]).mean())


def try_configuration(path: Path, root: Path, rows: set[str]) -> dict[str, Any]:
    """Return what becomes of a configuration: measured values, or the reason why it does not work."""
    try:
        config = read_opengait_config(path)
    except QgaitError as error:
        return {"error": reason(error, root)}
    found: dict[str, Any] = {"network": config.network}
    unsupported = why_unsupported(config)
    if unsupported:
        return found | {"error": unsupported}
    shapes = frame_shapes(config)
    found["input"] = " + ".join("×".join(map(str, shape)) for shape in shapes)
    row = f"{config.network} {found['input']}"
    began = time.perf_counter()
    try:
        found |= measure(config, row not in rows)
    except QgaitError as error:
        return found | {"error": reason(error, root)}
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def reason(error: QgaitError, root: Path) -> str:
    """Return the text of an error in one line, with paths in OpenGait's repository."""
    return " ".join(str(error).replace(f"{root}/", "").split())


def brief(error: str) -> str:
    """Return the exception and its place from the text of an error; the text itself if it names none."""
    found = re.search(r"\((\w+Error: .+?)\)? at (\S+\.py:\d+)", error)
    return f"{found[1]} at {found[2]}" if found else error


def rows_of(measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the configurations that work, by network and input."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in measured.items():
        if "error" not in found:
            rows.setdefault(f"{found['network']} {found['input']}", {})[name] = found
    return rows


def markdown(measured: dict[str, dict[str, Any]], commit: str, total: int) -> str:
    """The section."""
    lengths = ", ".join(map(str, LENGTHS[:-1])) + f" and {LENGTHS[-1]}"
    versions = sorted({found["versions"] for found in measured.values() if "versions" in found})
    lines = [
        INTRODUCTION.format(commit=commit, lengths=lengths).rstrip(),
        "",
        *([f"{len(measured)} of {total} configurations have been run.", ""] if len(measured) < total else []),
        *([f"Measured with {', or '.join(versions)}; `opengait.json` says which.", ""] if versions else []),
        "| network | frame | configurations | quantized | batch | frames | int8 | cosine W8A8 | file |",
        "|---|---|---:|---|---|---|---:|---:|---:|",
    ]
    for row in rows_of(measured).values():
        name, found = next(((name, one) for name, one in row.items() if "cosine" in one), ("", {}))
        if not found:
            continue
        cells = [
            found["network"],
            found["input"],
            str(len(row)),
            f"`{name}`",
            "any" if found["batch"] is None else f"{found['batch']} only",
            found["frames"].removesuffix(" number of frames"),
            f"{100 * found['integer_share']:.2f} %",
            f"{found['cosine']:.4f}",
            f"{found['parity']:.5f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "These configurations do not work:",
        "",
        "| configuration | network | why |",
        "|---|---|---|",
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, found in measured.items():
        if "error" in found:
            reasons.setdefault((found.get("network", ""), brief(found["error"])), []).append(f"`{name}`")
    lines += [
        f"| {', '.join(names)} | {network} | {why.replace('|', '/')} |"
        for (network, why), names in reasons.items()
    ]
    return "\n".join(lines) + "\n"


def commit_of(folder: Path) -> str:
    """Return the commit of a repository."""
    command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    return f"`{done.stdout.strip()}`" if done.returncode == 0 else "unknown"


def write(out: Path, measured: dict[str, dict[str, Any]], commit: str, total: int) -> None:
    """Write the stored values, and the section of the page."""
    configurations = dict(sorted(measured.items()))
    stored = {"commit": commit, "configurations": configurations}
    (out / "opengait.json").write_text(json.dumps(stored, indent=1) + "\n")
    page = out / "models.md"
    before, _ = split_page(page)
    page.write_text(before.rstrip() + ("\n\n" if before else "") + markdown(configurations, commit, total))


@click.command()
@click.argument("opengait", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), default="docs", show_default=True)
@click.option("--only", "names", multiple=True, help="Only configurations whose path contains this text.")
@click.option("--again", is_flag=True, help="Measure also what has been measured.")
def main(opengait: Path, out: Path, names: tuple[str, ...], again: bool) -> None:
    """Measure what has not been measured yet, and write the section of OUT/models.md."""
    root = opengait.resolve()
    sys.path.insert(0, str(root))
    out.mkdir(parents=True, exist_ok=True)
    stored, commit = out / "opengait.json", commit_of(root)
    known: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    measured: dict[str, dict[str, Any]] = known["configurations"] if known.get("commit") == commit else {}
    paths = sorted((root / "configs").rglob("*.yaml"))
    for path in paths:
        name = str(path.relative_to(root / "configs"))
        if (names and not any(text in name for text in names)) or (name in measured and not again):
            continue
        measured.pop(name, None)
        quantized = {
            row for row, found in rows_of(measured).items() if any("cosine" in f for f in found.values())
        }
        measured[name] = try_configuration(path, root, quantized)
        write(out, measured, commit, len(paths))
        click.echo(f"{name}: {measured[name].get('error', 'works')}")
    write(out, measured, commit, len(paths))


if __name__ == "__main__":
    main()
