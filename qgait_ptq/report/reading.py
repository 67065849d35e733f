"""Reading what a run has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qgait_ptq.errors import ConfigError


def read_report(folder: Path) -> dict[str, Any]:
    """``report.json`` of a result folder.

    Raises:
        ConfigError: the folder is no result, or the file is damaged.
    """
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{folder}: no result of quantize; {path.name}: {error.strerror or error}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path}: damaged: no JSON ({error})") from None
    if not isinstance(report, dict) or not isinstance(report.get("layers"), list):
        raise ConfigError(f"{path}: no report of quantize: it lists no layers")
    return report
