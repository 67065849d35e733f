"""How the widths of a run are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def widths_label(report: Mapping[str, Any]) -> str:
    """``W4A4``; of widths that were chosen layer by layer their means, ``W5.2A8.0``.

    Weights are averaged over parameters, activations over multiply-accumulates; float counts as 32.

    Args:
        report: as in ``report.json``.
    """
    if not report.get("allocation"):
        return f"W{report['config']['weight_bits']}A{report['config']['activation_bits']}"
    weights = _mean(report, "weight_bits", "parameters")
    activations = _mean(report, "activation_bits", "macs")
    return f"W{weights:.1f}A{activations:.1f}"


def _mean(report: Mapping[str, Any], bits: str, by: str) -> float:
    total = sum(layer[by] for layer in report["layers"])
    return float(sum((layer[bits] or 32) * layer[by] for layer in report["layers"]) / total)
