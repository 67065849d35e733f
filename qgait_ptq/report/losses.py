"""Losses of IDC and fine-tuning in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CANDIDATES = {
    "blocks": "after the blocks",
    "end": "last step",
    "average": "average of the last steps",
    "refit": "last layers",
}


def kept_training(calibration: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the records of stages that learned something: none if all of it was reverted for rank-1.

    Args:
        calibration: section of the report.
    """
    return {} if calibration.get("undone_for_rank1") else calibration


def loss_change(stage: Mapping[str, Any]) -> str:
    """Return the held-out loss before and after a stage, and what was kept.

    Args:
        stage: record of IDC or fine-tuning, with ``held_out_loss`` and ``kept``.

    Example:
        >>> loss_change({"held_out_loss": {"start": 0.5, "end": 0.4}, "kept": "end"})
        'loss 0.5000 → 0.4000 (last step)'
    """
    losses, kept = stage["held_out_loss"], stage["kept"]
    return f"loss {losses['start']:.4f} → {losses[kept]:.4f} ({CANDIDATES[kept]})"
