"""What becomes of each reference network at full size: captured, quantized, exported, compared.

    python examples/measure_models.py --out docs

Writes OUT/models.md from OUT/models.json, which keeps what has been measured: a killed measurement goes on
where it was. Weights are random, with batch norm statistics of a real pass: this is about structure, size and
agreement with the float network, not about recognition.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import qgait_ptq as qg
from qgait_ptq.capture.trace import Capture
from qgait_ptq.config.schema import IdcConfig, QuantConfig
from qgait_ptq.exporters.onnx_file import export_float, export_quantized
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sequences import cut_width
from qgait_ptq.gait.embedding import as_parts, network_batch
from qgait_ptq.gait.metrics import embedding_cosine
from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.population import Split, split_identities
from qgait_ptq.gait.walkers.rendering import render_identities, subject_name
from qgait_ptq.gait.zoo import NETWORKS
from qgait_ptq.graph.frame_parts import join_inputs
from qgait_ptq.placement.layers import LayerPlan, count_parameters, list_layers
from qgait_ptq.placement.planning import REPORTED_FRAMES
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.targets.registry import get_target
from qgait_ptq.verification.parity import Simulation, compare_with_simulation, layers_without_integer_kernel

# Name in the table, frames of each of its inputs.
MODELS: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {
    "gaitset": ("GaitSet", ((64, 44),)),
    "gaitpart": ("GaitPart", ((64, 44),)),
    "gaitgl": ("GaitGL", ((64, 44),)),
    "gaitbase": ("GaitBase", ((64, 44),)),
    "deepgaitv2-p3d": ("DeepGaitV2-P3D", ((64, 44),)),
    "swingait": ("Swin-style", ((64, 44),)),
    "skeletongait++": ("SkeletonGait++", ((3, 64, 44),)),
    "gaitgraph": ("GaitGraph", ((17, 3),)),
    "smplgait": ("SMPLGait", ((64, 44), (85,))),
}
WIDTHS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
CALIBRATION, TESTED = 16, 6
CALIBRATION_FRAMES, LENGTHS = 12, (15, 30, 61)
INTRODUCTION = """# Networks

Every reference network (`qgait_ptq/gait/zoo/`) at the size of its paper, through capture, quantization and
export for onnxruntime. Made by

```sh
python examples/measure_models.py
```

Weights are random with batch norm statistics of a real pass, so the table is about structure, size and
agreement, not about recognition; random weights are also harder to quantize than trained ones. {calibration}
synthetic sequences calibrate (corrections without labels, no IDC), {tested} of other people are measured.
Skeleton maps are made of parts of the silhouette, poses and body models are random walks.

- *frames*: whether the file takes any number of them; batch sizes are free throughout.
- *int8*: share of the multiply-accumulates of convolutions and fully connected layers that onnxruntime runs
  on integers, looked up in its optimised graph.
- *cosine*: between quantized and float embeddings, mean over sequences; *file* is the smallest cosine between
  file and simulation, over sequences of {lengths} frames and all three widths. In brackets, below 0.999:
  of the simulation in float32 with itself in float64. A deep network with random weights amplifies a value
  that falls to the other side of a rounding step: two correct ways of summing end that far apart.
- *MB*: of the float file and, beside its share of it, of the quantized one.

"""


def render(split: Split, count: int, frame_shapes: tuple[tuple[int, ...], ...]) -> GaitDataset:
    """Sequences of as many people, as frames of the shapes that a network takes."""
    walks = render_identities(
        split_identities(split, count), trials=((Condition.NORMAL, 1),), views_per_trial=1
    )
    pairs = []
    for walk in walks:
        for label, silhouettes in walk:
            inputs = tuple(as_input(cut_width(silhouettes), shape) for shape in frame_shapes)
            pairs.append((inputs if len(inputs) > 1 else inputs[0], subject_name(label.identity)))
    return GaitDataset.from_pairs(pairs)


def as_input(silhouettes: NDArray[np.uint8], frame_shape: tuple[int, ...]) -> NDArray[Any]:
    """Silhouettes themselves; with maps of their upper and lower half; or poses and bodies that wander."""
    if frame_shape == silhouettes.shape[1:]:
        return silhouettes
    if frame_shape[1:] == silhouettes.shape[1:]:
        upper, lower = silhouettes.copy(), silhouettes.copy()
        upper[:, 32:], lower[:, :32] = 0, 0
        return np.stack([silhouettes, upper, lower], axis=1)
    rng = np.random.default_rng(int(silhouettes.sum()))
    if len(frame_shape) == 1:  # of a body model, around zero
        wandering = rng.normal(0, 0.1, (len(silhouettes), *frame_shape)).cumsum(0)
        return (wandering + rng.uniform(-2, 2, frame_shape)).astype(np.float32)
    steps = rng.normal(0, 4, (len(silhouettes), *frame_shape)).cumsum(0) + rng.uniform(60, 200, frame_shape)
    return steps.clip(0, 255).astype(np.uint8)


def make_network(name: str, data: GaitDataset) -> nn.Module:
    """Random weights, and batch norm statistics of one real pass over two sequences."""
    torch.manual_seed(0)
    network = join_inputs(NETWORKS[name](), data.layout)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    shape = data[0][0].shape[1:]
    batch = torch.cat([network_batch(*data[i], shape, CALIBRATION_FRAMES) for i in range(4)])
    with torch.no_grad():
        network.train()(batch)
    return network.eval()


def measure(name: str) -> dict[str, Any]:
    """One network at all widths."""
    label, frame_shapes = MODELS[name]
    calibration, tested = (
        render(split, count, frame_shapes)
        for split, count in ((Split.CALIBRATION, CALIBRATION), (Split.TEST, TESTED))
    )
    network = make_network(name, calibration)
    found: dict[str, Any] = {
        "label": label,
        "frame_shapes": frame_shapes,
        "parity": {},
        "single": {},
        "cosine": {},
    }
    found["bytes"] = {}
    for bits, (weight_bits, activation_bits) in WIDTHS.items():
        config = QuantConfig(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            calibration_frames=CALIBRATION_FRAMES,
            correction_frames=CALIBRATION_FRAMES,
            idc=IdcConfig(enabled=False),
        )
        state = qg.calibrate(qg.prepare(network, qg.GaitData(calibration, tested), config, device="cpu"))
        captured, graph, quantized = state.captured, state.network, state.quantized
        layers = list_layers(graph)
        model = export_quantized(quantized, captured, get_target(config.target))
        session = open_session(model.SerializeToString(), spinning=False)
        parity = compare_with_simulation(
            partial(run_session, session),
            Simulation.of(quantized),
            batches(tested, captured),
            config.minimum_parity,
        )
        found["parity"][bits], found["single"][bits] = parity.cosine_min, parity.single_cosine_min
        with torch.inference_mode():
            pairs = [
                (as_parts(network(batch)), as_parts(torch.from_numpy(run_session(session, batch.numpy()))))
                for batch in batches(tested, captured)
            ]
        reference, given = (torch.cat(embeddings) for embeddings in zip(*pairs, strict=True))
        found["cosine"][bits] = float(embedding_cosine(reference, given).mean())
        found["bytes"][bits] = model.ByteSize()
        slow = layers_without_integer_kernel(
            model.SerializeToString(), [layer.name for layer in list_layers(graph) if layer.integer]
        )
        if bits == "W8A8":
            found["bytes"]["float"] = export_float(graph, captured, 21).ByteSize()
            found |= describe(captured, layers, slow)
    return found


def batches(data: GaitDataset, captured: Capture) -> Iterator[Tensor]:
    """Sequences of three lengths in turn."""
    for index, (frames, record) in enumerate(data):
        length = captured.frames or LENGTHS[index % len(LENGTHS)]
        yield network_batch(frames, record, captured.frame_shape, length)


def describe(captured: Capture, layers: list[LayerPlan], slow: list[str]) -> dict[str, Any]:
    """Size, work, and what is not on integers."""
    total = sum(layer.macs for layer in layers)
    integer = sum(layer.macs for layer in layers if layer.integer and layer.name not in slow)
    return {
        "parameters": count_parameters(layers),
        "macs": total * REPORTED_FRAMES // (captured.frames or REPORTED_FRAMES),
        "integer_share": integer / total,
        "not_integer": {layer.name: layer.note for layer in layers if not layer.integer}
        | dict.fromkeys(slow, "no integer kernel in onnxruntime"),
        "batch": captured.batch,
        "frames": captured.frames,
    }


def agreement(found: dict[str, Any]) -> str:
    """Of file and simulation; beside it, where that is less than asked for, of the simulation with itself."""
    single = min(found.get("single", {"": 1.0}).values())
    return f"{min(found['parity'].values()):.5f}" + (f" ({single:.5f})" if single < 1 else "")


def markdown(measured: dict[str, dict[str, Any]]) -> str:
    """The page."""
    text = INTRODUCTION.format(
        calibration=CALIBRATION,
        tested=TESTED,
        lengths=", ".join(map(str, LENGTHS[:-1])) + f" and {LENGTHS[-1]}",
    )
    widths = " | ".join(f"cosine {bits}" for bits in WIDTHS)
    heading = (
        f"| network | frame | M parameters | GMAC, 30 frames | frames | int8 | {widths} | file | MB float | "
        "MB W8 | MB W4 |"
    )
    lines = [heading, "|---|---|" + "---:|" * (heading.count("|") - 3)]
    for name in MODELS:
        if name not in measured:
            continue
        found = measured[name]
        size = {bits: count / 1e6 for bits, count in found["bytes"].items()}
        cells = [
            found["label"],
            " + ".join("×".join(map(str, shape)) for shape in found["frame_shapes"]),
            f"{found['parameters'] / 1e6:.2f}",
            f"{found['macs'] / 1e9:.2f}",
            "any" if found["frames"] is None else f"{found['frames']} only",
            f"{100 * found['integer_share']:.2f} %",
            *(f"{found['cosine'][bits]:.4f}" for bits in WIDTHS),
            agreement(found),
            f"{size['float']:.2f}",
            *(f"{size[bits]:.2f} ({size[bits] / size['float']:.3f})" for bits in ("W8A8", "W4A4")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    in_float = []
    for name in MODELS:
        if name in measured and measured[name]["not_integer"]:
            listed = "; ".join(f"`{layer}`: {note}" for layer, note in measured[name]["not_integer"].items())
            in_float.append(f"- {measured[name]['label']}: {listed}.")
    if in_float:
        lines += ["", "Layers whose sums are not on integers:", "", *in_float]
    return text + "\n".join(lines) + "\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="docs", show_default=True)
@click.option("--network", "names", multiple=True, type=click.Choice(list(MODELS)), help="Only this one.")
@click.option("--again", is_flag=True, help="Measure also what has been measured.")
def main(out: Path, names: tuple[str, ...], again: bool) -> None:
    """Measure what has not been measured yet and write OUT/models.md."""
    out.mkdir(parents=True, exist_ok=True)
    stored = out / "models.json"
    measured = json.loads(stored.read_text()) if stored.exists() else {}
    for name in names or tuple(MODELS):
        if name not in measured or again:
            measured[name] = measure(name)
            stored.write_text(json.dumps(measured, indent=1) + "\n")
            (out / "models.md").write_text(markdown(measured))
            click.echo(f"{name}: cosine {measured[name]['cosine']}")
    (out / "models.md").write_text(markdown(measured))


if __name__ == "__main__":
    main()
