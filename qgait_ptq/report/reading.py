"""Reading ``report.json`` of a result. The entries that other commands use are checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from qgait_ptq.config.recipes import parse
from qgait_ptq.errors import ConfigError
from qgait_ptq.system.reading import read_text

LARGEST_REPORT = 64 * 10**6  # bytes


def _check_unicode(text: str) -> str:
    text.encode()  # fails for half of a surrogate pair
    return text


Text = Annotated[str, AfterValidator(_check_unicode)]
# Numbers that tables and plots can show. Measured values are never larger.
Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**63)]
Bits = Annotated[int, Field(ge=1, le=32)]


class _Section(BaseModel):
    """A section of a report. Unknown keys are ignored, and missing keys stay missing."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class _Layer(_Section):
    name: Text
    weight_bits: Bits | None
    activation_bits: Bits | None
    parameters: Count
    macs: Count
    sqnr_db: float | None = None
    equalization_factors: list[Number] | None = None
    weight_only: bool = False


class _Data(_Section):
    description: Text
    test_sequences: Count
    metric: Text
    protocol: Text | None = None
    test_names: Text | None = None
    test_content: Text | None = None
    cut_columns: Count | None = None
    modalities: list[Count] | None = None
    longest: Count | None = None


class _Rank1(_Section):
    mean: Number


class _Accuracy(_Section):
    rank1: _Rank1
    mAP: Number  # noqa: N815 - key of the file


class _Interval(_Section):
    mean: Number
    low: Number
    high: Number


class _Changes(_Section):
    rank1: _Interval | None = None


class _Comparison(_Section):
    onnx: _Changes | None = None


class _Agreement(_Section):
    cosine_mean: Number
    sqnr_db: float  # infinite if nothing was changed


class _Sizes(_Section):
    onnx: Count


class _Speed(_Section):
    onnx_ms: Number | None = None
    faster: Annotated[list[Number], Field(min_length=1)] | None = None
    runtime: Text | None = None
    frames: Count | None = None


class _Submodule(_Section):
    name: Text


class _Model(_Section):
    sha256: Text | None = None
    submodule: _Submodule | None = None


class _Target(_Section):
    name: Text


class _Widths(_Section):
    weight_bits: Bits
    activation_bits: Bits


class _Report(_Section):
    """The content that `read_report` returns. Only the layers are in reports of all versions."""

    layers: list[_Layer]
    model: _Model | None = None
    data: _Data | None = None
    accuracy: dict[str, _Accuracy] | None = None
    comparison: _Comparison | None = None
    agreement: _Agreement | None = None
    size_bytes: _Sizes | None = None
    target: _Target | None = None
    config: _Widths | None = None
    allocation: dict[str, Any] | None = None
    speed: _Speed | None = None


def read_report(folder: Path) -> dict[str, Any]:
    """Read ``report.json`` of a result folder. Keys that older versions did not write can be missing.

    Raises:
        ConfigError: the folder is not a result, or the file is damaged; the text names the field.
    """
    path = folder / "report.json"
    if not os.path.exists(path):
        raise ConfigError(f"{folder}: not a result folder of quantize; {path.name} is missing")
    text = read_text(path, LARGEST_REPORT, "the report")
    try:
        report = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged: the file is not valid JSON ({error})") from None
    if not isinstance(report, dict) or not isinstance(report.get("layers"), list):
        raise ConfigError(f"{path}: not a report of quantize: the list of layers is missing")
    return parse(_Report, report, f"{path}: damaged").model_dump(exclude_unset=True)
