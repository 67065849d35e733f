"""Labels for the widths of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def widths_label(report: Mapping[str, Any]) -> str:
    """Return a label such as ``W4A4``, or ``W5.2A8.0`` with means if widths were chosen for each layer.

    Weights are averaged over parameters, activations over multiply-accumulates. Float counts as 32 bits.

    Args:
        report: content of ``report.json``.
    """
    if not report.get("allocation"):
        return f"W{report['config']['weight_bits']}A{report['config']['activation_bits']}"
    weights = _mean(report, "weight_bits", "parameters")
    activations = _mean(report, "activation_bits", "macs")
    return f"W{weights:.1f}A{activations:.1f}"


def allocation_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on the choice of widths, or nothing if the configuration sets them.

    Args:
        report: content of ``report.json``.
    """
    allocation, config = report.get("allocation"), report["config"]
    if not allocation:
        return
    allowed = (
        config["max_drop"] if config["max_drop"] is not None else 0.0 - (config["target_accuracy"] or 0.0)
    )
    goal = f"a loss of at most {allowed:g} points of rank-1"
    if config["budget"] is not None:
        size, operations = config["budget"]["size_mb"], config["budget"]["bops_percent"]
        goal = f"a file of {size:g} MB" if size is not None else f"{operations:g} % of the bit operations"
    layers = report["layers"]
    spans = [
        _span([layer[key] for layer in layers if layer[key] is not None])
        for key in ("weight_bits", "activation_bits")
    ]
    yield f"widths chosen for {goal}: weights {spans[0]} bits, inputs {spans[1]} bits"
    if allocation["in_float"]:
        yield f"kept in float for this goal: {', '.join(allocation['in_float'])}"
    if "held_out_drop" in allocation:
        tries = len(allocation["looks"])
        yield (
            f"rank-1 of held-out identities changes by {0.0 - allocation['held_out_drop']:+.2f} points, "
            f"found with {tries} calibration{'s' * (tries != 1)}"
        )


def _span(widths: list[int]) -> str:
    low, high = min(widths), max(widths)
    return str(low) if low == high else f"{low} to {high}"


def _mean(report: Mapping[str, Any], bits: str, by: str) -> float:
    total = max(sum(layer[by] for layer in report["layers"]), 1)
    return float(sum((layer[bits] or 32) * layer[by] for layer in report["layers"]) / total)
