"""What a report says of processors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def processors_line(pair_sums: Mapping[str, Any]) -> str:
    """Say whether the file is proven to give the same integers on every processor."""
    differing = pair_sums.get("differing_additions", [])
    if pair_sums["safe"] and differing:
        return f"the same sums on every processor; {len(differing)} additions are rounded otherwise on ARM64"
    if pair_sums["safe"]:
        return "proven: the same integers in layers and additions on every processor"
    layers = pair_sums["unsafe_layers"] + pair_sums["unknown_layers"]
    return (
        f"weight range {pair_sums['weight_range']}: on x86 processors without VNNI the 16-bit sums of "
        f"{len(layers)} layers can saturate"
    )
