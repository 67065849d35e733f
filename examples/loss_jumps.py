"""Where a small change of a scale makes the loss jump: the layers that IDC and fine-tuning leave alone.

    python examples/loss_jumps.py

GaitBase-small at several widths, after the corrections. See docs/findings.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import qgait_ptq as qg
from qgait_ptq.config import IdcConfig
from qgait_ptq.gait import Split, render_walkers
from qgait_ptq.gait.zoo import gaitbase_small

WIDTHS = ((4, 4), (3, 3), (2, 4), (2, 2))
IDENTITIES = 16
CHECKPOINT = Path(__file__).parent / "models" / "gaitbase-small.pt"


def main() -> None:
    """Print a table."""
    walkers = render_walkers(Split.CALIBRATION, IDENTITIES, views_per_trial=1)
    network = gaitbase_small()
    network.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["model"])
    table = Table(title="Rise of the loss when the scale behind a layer changes by 3 %")
    for heading in ("widths", "layer", "rise", "trained layers"):
        table.add_column(heading)
    for weight_bits, activation_bits in WIDTHS:
        config = qg.QuantConfig(
            weight_bits=weight_bits, activation_bits=activation_bits, idc=IdcConfig(enabled=True, steps=1)
        )
        state = qg.calibrate(qg.prepare(network, qg.GaitData(walkers, walkers), config, device="cpu"))
        found = state.record["idc"]
        trained = f"{found['trained_layers']} of {found['of_layers']}"
        for layer, rise in found["loss_jumps"].items() or [("none", 0.0)]:
            table.add_row(config.label, layer, f"{100 * rise:.0f} %", trained)
    Console().print(table)


if __name__ == "__main__":
    main()
