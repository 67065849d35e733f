"""What the safe weight range costs: gaitbase-small with both ranges, on the built-in walkers.

    python examples/measure_weight_range.py

Without IDC, 32 calibration sequences. SQNR is of the file's embeddings of 200 test sequences against
the float network's; the mean is over seeds that choose the calibration sequences.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import click
import torch

import qgait_ptq as qg
from qgait_ptq.config import IdcConfig
from qgait_ptq.gait.zoo import gaitbase_small

CHECKPOINT = Path(__file__).parent / "models" / "gaitbase-small.pt"
CALIBRATION, TESTED = 32, 200
RANGES = ("full", "safe")


@click.command()
@click.option("--bits", multiple=True, type=int, default=(8, 4), show_default=True)
@click.option("--seeds", default=2, show_default=True)
def main(bits: tuple[int, ...], seeds: int) -> None:
    """Print one row for each width and range."""
    network = gaitbase_small()
    network.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["model"])
    walkers = qg.load_walkers(workers=2)
    data = qg.GaitData(walkers.calibration, walkers.test.choose(TESTED, seed=1))
    print("| widths | weight range | SQNR, dB | each seed | largest 16-bit sum |")
    print("|---|---|---:|---|---:|")
    for width in bits:
        for weight_range in RANGES:
            found, sums = [], []
            for seed in range(seeds):
                config = qg.QuantConfig(
                    weight_bits=width,
                    activation_bits=width,
                    weight_range=weight_range,
                    calibration_sequences=CALIBRATION,
                    idc=IdcConfig(enabled=False),
                    seed=seed,
                )
                report = qg.quantize(network.eval(), data, config).report
                found.append(report.agreement.sqnr_db)
                sums.append(report.pair_sums.largest_bound)
            each = ", ".join(f"{sqnr:.2f}" for sqnr in found)
            row = f"W{width}A{width} | {weight_range} | {statistics.mean(found):.2f} | {each} | {max(sums):,}"
            print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
