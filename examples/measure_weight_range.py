"""What the safe weight range costs: gaitbase-small with both ranges, on the built-in walkers.

    python examples/measure_weight_range.py

Without IDC, 32 calibration sequences. SQNR is of embeddings against the float network; rank-1 and mAP are
those of the file in onnxruntime. A run takes some minutes.
"""

from __future__ import annotations

import click
import torch

import qgait_ptq as qg
from qgait_ptq.config import IdcConfig
from qgait_ptq.gait.zoo import gaitbase_small

CHECKPOINT, SEQUENCES = "examples/models/gaitbase-small.pt", 32
RANGES = ("full", "safe")


@click.command()
@click.option("--bits", multiple=True, type=int, default=(8, 4), show_default=True)
def main(bits: tuple[int, ...]) -> None:
    """Print one row for each width and range."""
    network = gaitbase_small()
    network.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["model"])
    data = qg.load_walkers(workers=2)
    print("| widths | weight range | SQNR, dB | rank-1, % | mAP, % | largest 16-bit sum |")
    print("|---|---|---:|---:|---:|---:|")
    for width in bits:
        for weight_range in RANGES:
            config = qg.QuantConfig(
                weight_bits=width,
                activation_bits=width,
                weight_range=weight_range,
                calibration_sequences=SEQUENCES,
                idc=IdcConfig(enabled=False),
            )
            report = qg.quantize(network.eval(), data, config).report
            accuracy = report.accuracy["onnx"]
            print(
                f"| W{width}A{width} | {weight_range} | {report.agreement['sqnr_db']:.2f} "
                f"| {accuracy['rank1']['mean']:.2f} | {accuracy['mAP']:.2f} "
                f"| {report.pair_sums['largest_bound']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
