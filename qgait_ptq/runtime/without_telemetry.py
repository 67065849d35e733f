"""onnxruntime and OpenVINO, imported without their telemetry.

Both contact a server in the internet as soon as they are imported (onnxruntime: seen in version 1.32).
onnxruntime writes an identifier of the machine into the cache folder; OpenVINO writes into the home folder.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

__all__ = ["ONNXRUNTIME_SWITCH", "OPENVINO_TELEMETRY", "import_openvino", "onnxruntime"]

ONNXRUNTIME_SWITCH = "ORT_DISABLE_TELEMETRY"  # environment variable of onnxruntime
os.environ.setdefault(ONNXRUNTIME_SWITCH, "1")  # a user who wants the telemetry can set it to 0

import onnxruntime  # noqa: E402

OPENVINO_TELEMETRY = "openvino_telemetry"  # module of OpenVINO


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    OpenVINO runs without its telemetry if the telemetry cannot be imported.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    kept = sys.modules.get(OPENVINO_TELEMETRY)
    if kept is None:
        sys.modules[OPENVINO_TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails
    try:
        return importlib.import_module("openvino")
    finally:
        if kept is None:
            del sys.modules[OPENVINO_TELEMETRY]
