"""Embedding SQNR of the stages without labels and gradients, against plain min-max, every layer quantized.

    python examples/measure_sqnr.py

Two networks, both without batch norm behind the embedding: the shipped small GaitBase before its neck
(trained; nine 3×3 and 5×5 convolutions, three shortcuts, one fully connected layer per part), and nine plain
convolutions with a per-part fully connected layer and random weights. 64 synthetic walkers' sequences
calibrate, 64 of other people are measured. First and last layer have the width of all others here.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import qgait_ptq as qg
from qgait_ptq.config import IdcConfig
from qgait_ptq.gait import (
    Condition,
    GaitDataset,
    Split,
    embed_dataset,
    embedding_cosine,
    embedding_sqnr,
    render_walkers,
)
from qgait_ptq.gait.zoo import GaitBase, HorizontalPooling, PartLinear, gaitbase_small

SIZE, SEQUENCES = (64, 44), 64
CHECKPOINT = Path(__file__).parent / "models" / "gaitbase-small.pt"
WIDTHS = ((8, 8), (4, 8), (4, 4), (3, 8))
METHODS: dict[str, dict[str, Any]] = {
    "min-max": {
        "observer": "minmax",
        "weight_observer": "minmax",
        "equalization": "none",
        "rounding": "nearest",
        "bias_correction": False,
    },
    "defaults without IDC": {},
}


class NineConvolutions(nn.Module):
    """Convolutions with batch norm, maximum over frames, strips, and a fully connected layer per part."""

    def __init__(
        self, channels: tuple[int, ...] = (16, 16, 16, 32, 32, 64, 64, 128, 128), parts: int = 16
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = (1, *channels)
        for index, (before, after) in enumerate(zip(inputs, channels, strict=False)):
            stride = 2 if index in (0, 3) else 1
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.pooling = HorizontalPooling((parts,))
        self.part_linear = PartLinear(parts, channels[-1], 128)

    def forward(self, silhouettes: Tensor) -> Tensor:
        """``[n, s, h, w]`` to ``[n, c, p]``."""
        maps = self.layers(silhouettes.flatten(0, 1).unsqueeze(1))
        largest = maps.unflatten(0, (silhouettes.shape[0], -1)).amax(1)
        embedding: Tensor = self.part_linear(self.pooling(largest))
        return embedding


class BeforeNeck(nn.Module):
    """A GaitBase whose embedding is taken before the neck."""

    def __init__(self, network: GaitBase) -> None:
        super().__init__()
        self.network = network

    def forward(self, silhouettes: Tensor) -> Tensor:
        """``[n, s, h, w]`` to ``[n, c, p]``."""
        return self.network.features(silhouettes)


def load_networks(batch: Tensor) -> dict[str, nn.Module]:
    """The two networks in eval mode; the random one with batch norm statistics of a real pass."""
    trained = gaitbase_small()
    trained.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["model"])
    torch.manual_seed(0)
    plain = NineConvolutions()
    update_bn([batch], plain)
    return {
        "GaitBase-small before the neck": BeforeNeck(trained).eval(),
        "nine convolutions, random": plain.eval(),
    }


def render(first: int) -> GaitDataset:
    """Four sequences of each of 16 people."""
    trials = ((Condition.NORMAL, 1), (Condition.CLOTHES, 1))
    return render_walkers(Split.CALIBRATION, SEQUENCES // 4, first=first, trials=trials, views_per_trial=2)


def main() -> None:
    """Print a table."""
    calibration, test = render(2000), render(3000)
    example = torch.stack([torch.from_numpy(s[:20]).float() / 255 for s, _ in calibration.choose(16, 0)])
    table = Table(title=f"Synthetic walkers, {SEQUENCES} sequences, {torch.get_num_threads()} threads")
    for heading in ("network", "widths", "method", "SQNR, dB", "worst cosine", "s"):
        table.add_column(heading, justify="left" if heading in ("network", "method") else "right")
    for name, network in load_networks(example).items():
        for weight_bits, activation_bits in WIDTHS:
            for method, settings in METHODS.items():
                widths = {"weight_bits": weight_bits, "activation_bits": activation_bits}
                config = qg.QuantConfig.model_validate(
                    {**widths, "layers": {"*": widths}, "idc": IdcConfig(enabled=False), **settings}
                )
                prepared = qg.prepare(network, qg.GaitData(calibration, test), config, device="cpu")
                started = time.perf_counter()
                state = qg.calibrate(prepared)
                seconds = time.perf_counter() - started
                wanted, given = embed_dataset(test, [state.network, state.quantized], SIZE)
                cosine = float(embedding_cosine(wanted, given).min())
                table.add_row(
                    name,
                    config.label,
                    method,
                    f"{embedding_sqnr(wanted, given):.1f}",
                    f"{cosine:.4f}",
                    f"{seconds:.0f}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
