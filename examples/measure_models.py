"""What becomes of each reference network at full size: captured, quantized, exported, compared.

    python examples/measure_models.py --out docs

Writes OUT/models.md from OUT/models.json, which keeps what has been measured: a killed measurement goes on
where it was. Weights are random, with batch norm statistics of a real pass: this is about structure, size and
agreement with the float network, not about recognition.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import qgait_ptq as qg
from qgait_ptq.config import IdcConfig
from qgait_ptq.gait import Condition, GaitDataset, Split, embedding_cosine, network_batch, render_walkers
from qgait_ptq.gait.zoo import NETWORKS

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
OPENGAIT_SECTION = "## OpenGait's configurations"  # of the page, written by opengait_configs.py
REPORTED_FRAMES = 30  # frames for which multiply-accumulates are counted, if the network takes as many
INTRODUCTION = """# Networks

Every reference network (`qgait_ptq/gait/zoo/`) in its default size, through capture, quantization and
export for onnxruntime. Made by

```sh
python examples/measure_models.py
```

Weights are random with batch norm statistics of a real pass, so the table is about structure, size and
agreement, not about recognition; random weights are also harder to quantize than trained ones. {calibration}
synthetic sequences calibrate (corrections without labels, no IDC), {tested} of other people are measured.
Skeleton maps are made of parts of the silhouette, poses and body models are random walks.

- *GMAC*: in brackets, the frame count if the network does not take 30. Some networks compute a part once for
  each sequence or for each pair of frames, so figures of two frame counts cannot be converted.
- *frames*: whether the file takes any number of them; batch sizes are free throughout.
- *int8*: share of the multiply-accumulates that onnxruntime runs on integers, looked up in its optimised
  graph. Products of two activations, as in attention, are counted, and run in float.
- *cosine*: between quantized and float embeddings, mean over sequences; *file* is the smallest cosine between
  file and simulation, over sequences of {lengths} frames and all three widths. In brackets, below 0.999:
  of the simulation with itself after rounding errors of float32. A deep network with random weights
  amplifies a value that falls to the other side of a rounding step: two correct ways of summing end that
  far apart.
- *MB*: of the float file and, beside its share of it, of the quantized one.

"""


def render(split: Split, count: int, frame_shapes: tuple[tuple[int, ...], ...]) -> GaitDataset:
    """Sequences of as many people, as frames of the shapes that a network takes."""
    walks = render_walkers(split, count, trials=((Condition.NORMAL, 1),), views_per_trial=1)
    pairs = []
    for silhouettes, record in walks:
        inputs = tuple(as_input(silhouettes, shape) for shape in frame_shapes)
        pairs.append((inputs if len(inputs) > 1 else inputs[0], record.subject))
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


class OneInput(nn.Module):
    """A network that takes all its inputs in one tensor, as a data set of several inputs has them."""

    def __init__(self, network: nn.Module, data: GaitDataset) -> None:
        super().__init__()
        self.network, self.layout = network, data.layout

    def forward(self, frames: Tensor) -> Tensor:
        """``[n, s, ...]``, or ``[n, s, F]`` of several inputs, to the embedding."""
        inputs = [frames]
        if self.layout is not None:
            places = zip(self.layout.inputs, self.layout.starts, strict=True)
            inputs = [frames[..., at : at + part.size].unflatten(-1, part.shape) for part, at in places]
        embedding: Tensor = self.network(*inputs)
        return embedding


def make_network(build: Callable[[], nn.Module], data: GaitDataset) -> nn.Module:
    """Random weights, and batch norm statistics of one real pass over two sequences."""
    torch.manual_seed(0)
    network = build()
    shape = data[0][0].shape[1:]
    batch = torch.cat([network_batch(*data[i], shape, CALIBRATION_FRAMES) for i in range(4)])
    update_bn([batch], OneInput(network, data))
    return network.eval()


def measure(name: str) -> dict[str, Any]:
    """One network at all widths."""
    label, frame_shapes = MODELS[name]
    calibration, tested = (
        render(split, count, frame_shapes)
        for split, count in ((Split.CALIBRATION, CALIBRATION), (Split.TEST, TESTED))
    )
    network = make_network(NETWORKS[name], calibration)
    joined = OneInput(network, calibration).eval()
    found: dict[str, Any] = {
        "label": label,
        "frame_shapes": frame_shapes,
        "parity": {},
        "single": {},
        "cosine": {},
    }
    found["bytes"] = {}
    for bits, (weight_bits, activation_bits) in WIDTHS.items():
        config = qg.QuantConfig(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            calibration_frames=CALIBRATION_FRAMES,
            correction_frames=CALIBRATION_FRAMES,
            input_type="float32",
            idc=IdcConfig(enabled=False),
        )
        prepared = qg.prepare(network, qg.GaitData(calibration, tested), config, device="cpu")
        state = qg.export(qg.calibrate(prepared))
        parity = qg.check_parity(state, batches(tested, state))
        found["parity"][bits], found["single"][bits] = parity.cosine_min, parity.single_cosine_min
        with torch.inference_mode():
            pairs = [(joined(batch), state.file.run(batch)) for batch in batches(tested, state)]
        reference, given = (torch.cat(embeddings) for embeddings in zip(*pairs, strict=True))
        found["cosine"][bits] = float(embedding_cosine(reference, given).mean())
        found["bytes"][bits] = state.file.model.ByteSize()
        if bits == "W8A8":
            found["bytes"]["float"] = state.file.float_model.ByteSize()
            found |= describe(state)
    return found


def batches(data: GaitDataset, state: qg.State) -> Iterator[Tensor]:
    """Sequences of three lengths in turn."""
    captured = state.captured
    for index, (frames, record) in enumerate(data):
        length = captured.frames or LENGTHS[index % len(LENGTHS)]
        yield network_batch(frames, record, captured.frame_shape, length)


def describe(state: qg.State) -> dict[str, Any]:
    """Size, work, and what is not on integers."""
    captured, layers, slow = state.captured, state.layers, state.record["slow_layers"]
    totals = state.totals  # with products of two activations, which are no layers
    without_kernel = sum(layer.macs for layer in layers if layer.integer and layer.name in slow)
    return {
        # Weights that layers share count once.
        "parameters": sum({layer.weight: layer.parameters for layer in layers}.values()),
        "macs": totals.macs,
        "macs_frames": captured.frame_counts.nearest(REPORTED_FRAMES),
        "integer_share": (totals.integer_macs - without_kernel) / totals.macs,
        "not_integer": {layer.name: layer.note for layer in layers if not layer.integer}
        | dict.fromkeys(slow, "no integer kernel in onnxruntime"),
        "batch": captured.batch,
        "frames": captured.frames,
    }


def work(found: dict[str, Any]) -> str:
    """Multiply-accumulates, with the frame count if the network does not take as many as in the heading."""
    frames = found.get("macs_frames", REPORTED_FRAMES)
    return f"{found['macs'] / 1e9:.2f}" + (f" ({frames} frames)" if frames != REPORTED_FRAMES else "")


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
            work(found),
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


def split_page(page: Path) -> tuple[str, str]:
    """The page before the section of OpenGait's configurations, and this section; both may be empty."""
    before, heading, section = (page.read_text() if page.exists() else "").partition(OPENGAIT_SECTION)
    return before, heading + section


def write_page(page: Path, measured: dict[str, dict[str, Any]]) -> None:
    """Write the page, and keep the section that another command writes."""
    _, section = split_page(page)
    page.write_text(markdown(measured) + (f"\n{section}" if section else ""))


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
            write_page(out / "models.md", measured)
            click.echo(f"{name}: cosine {measured[name]['cosine']}")
    write_page(out / "models.md", measured)


if __name__ == "__main__":
    main()
