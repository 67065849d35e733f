"""Guarantees for processors, as a line of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def processors_line(pair_sums: Mapping[str, Any]) -> str:
    """Return a line that says whether the file gives the same integers on every processor."""
    differing = pair_sums.get("differing_additions", [])
    if pair_sums["safe"] and differing:
        return (
            f"proven: the same sums on every processor; {len(differing)} additions round differently on ARM64"
        )
    if pair_sums["safe"]:
        return "proven: the same integers in layers and additions on every processor"
    layers = pair_sums["unsafe_layers"] + pair_sums["unknown_layers"]
    return (
        f"weight range {pair_sums['weight_range']}: on x86 processors without VNNI the 16-bit sums of "
        f"{len(layers)} layers can saturate"
    )
