"""What the toolkit writes into an ONNX file beside the network: one JSON text under one key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

METADATA_KEY = "qgait_ptq"


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """The text to store; the same dictionary gives the same text."""
    return json.dumps(metadata, sort_keys=True)


def parse_metadata(properties: Mapping[str, str]) -> dict[str, Any] | None:
    """The dictionary from a file's properties; None where the toolkit did not write the file."""
    try:
        found = json.loads(properties[METADATA_KEY])
    except (KeyError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def is_proven_safe(metadata: Mapping[str, Any] | None) -> bool:
    """Whether a file was proven to give the same integers on every processor when it was written."""
    sums = (metadata or {}).get("pair_sums")
    return isinstance(sums, Mapping) and sums.get("safe") is True
