"""Metadata of the toolkit in an ONNX file: one JSON text under one key.

A file may come from an untrusted source, so every field is checked here before it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qgait_ptq.errors import ModelError, first_line
from qgait_ptq.gait.metric_names import METRICS
from qgait_ptq.graph.frame_layout import InputKind
from qgait_ptq.system.reading import shown

METADATA_KEY = "qgait_ptq"
LARGEST_NUMBER = 2**63
LARGEST_REPEATS = 1000  # largest repetition of a short sequence
MOST_COUNTED = 3  # frame counts for which multiply-accumulates are recorded
KINDS = tuple(kind.value for kind in InputKind)


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Return the text to store; equal dictionaries give equal texts."""
    return json.dumps(metadata, sort_keys=True)


def parse_metadata(properties: Mapping[str, str], file: str | Path = "the model") -> dict[str, Any] | None:
    """Read and check the dictionary in a file's properties.

    Args:
        properties: properties of the file.
        file: name of the file in errors.

    Returns:
        The metadata, or None if the toolkit did not write the file. Files of older versions may lack
        sections and fields.

    Raises:
        ModelError: the text is damaged, or a field has an unexpected type.
    """
    if METADATA_KEY not in properties:
        return None
    damaged = f"{file}: its metadata are damaged"
    try:
        metadata = json.loads(properties[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{damaged}: not JSON ({first_line(error)})") from None
    if not isinstance(metadata, dict):
        raise ModelError(f"{damaged}: expected a mapping, not {shown(metadata)}")
    for section, fields in FIELDS.items():
        values = metadata.get(section, {})
        if not isinstance(values, dict):
            raise ModelError(f"{damaged}: {section} is {shown(values)}, expected a mapping")
        for field, (is_valid, expected) in fields.items():
            if field in values and not is_valid(values[field]):
                raise ModelError(
                    f"{damaged}: {section}.{field} is {shown(values[field])}, expected {expected}"
                )
    for section, partner, needed in NEEDED_WITH:
        values = metadata.get(section)
        if values is not None and (partner is None or partner in values) and needed not in values:
            raise ModelError(f"{damaged}: {section}.{needed} is missing")
    return metadata


def is_proven_safe(metadata: Mapping[str, Any] | None) -> bool:
    """Return whether the file was proven to give the same integer sums on every processor."""
    sums = (metadata or {}).get("pair_sums")
    return isinstance(sums, Mapping) and sums.get("safe") is True


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_NUMBER


def _is_positive(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_list(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_item, value))


def _is_input(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("name"))
        and _is_list(value.get("shape"), _is_positive)
        and value.get("kind") in KINDS
        and (value.get("largest") is None or _is_count(value["largest"]))
    )


def _is_part(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("name"))
        and all(value.get(name, "") is None or _is_count(value.get(name)) for name in AXES)
        and _is_list(value.get("result_shape"), _is_positive)
    )


def _is_frame_counts(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_positive(value.get("shortest")):
        return False
    longest, repeats = value.get("longest"), value.get("repeats")
    return (
        (longest is None or (_is_positive(longest) and longest >= value["shortest"]))
        and isinstance(repeats, dict)
        and all(re.fullmatch(r"[1-9]\d{0,2}", count) for count in repeats)
        and all(_is_positive(times) and times <= LARGEST_REPEATS for times in repeats.values())
    )


def _is_macs_by_frames(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MOST_COUNTED
        and all(re.fullmatch(r"[1-9]\d{0,5}", frames) for frames in value)
        and all(map(_is_count, value.values()))
    )


def _optional(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_valid(value)


AXES = ("given_axis", "result_axis")
# The check and the expected value of each field that is read, by section and field.
FIELDS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "model": {
        "raw": (_is_flag, "true or false"),
        "streams": (_is_flag, "true or false"),
        "inputs": (lambda value: _is_list(value, _is_input), "a list of name, shape and kind"),
        "submodule": (_optional(_is_part), "null, or a name, axes and a shape"),
        "frames": (_optional(_is_positive), "null or a positive integer"),
        "frame_counts": (_is_frame_counts, "shortest, longest and repeats"),
        "macs": (_is_count, "an integer of 0 or more"),
        "macs_frames": (_is_positive, "a positive integer"),
        "macs_by_frames": (_is_macs_by_frames, "integers of 0 or more by frame counts"),
        "channels": (_is_positive, "a positive integer"),
        "parts": (_is_positive, "a positive integer"),
    },
    "data": {
        "cut_columns": (_optional(_is_count), "null or an integer of 0 or more"),
        "modalities": (
            lambda value: bool(value) and _is_list(value, _is_count),
            "a list of integers of 0 or more",
        ),
        "longest": (_optional(_is_positive), "null or a positive integer"),
        "metric": (lambda value: value in METRICS, " or ".join(METRICS)),
    },
    "target": {
        "name": (_is_text, "text"),
        "runtimes": (lambda value: _is_list(value, _is_text), "a list of names"),
    },
    "pair_sums": {"safe": (_is_flag, "true or false")},
}
# Section, a field (None for the section itself), and the field that it requires.
NEEDED_WITH = (("target", None, "name"), ("target", None, "runtimes"), ("model", "macs", "macs_frames"))
