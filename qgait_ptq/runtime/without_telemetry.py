"""onnxruntime, imported without its telemetry.

As soon as they are imported, newer versions report to a server in the internet, and write an identifier of
the machine into the user's cache (seen in 1.32). An environment variable turns this off.
"""

from __future__ import annotations

import os

__all__ = ["onnxruntime"]

SWITCH = "ORT_DISABLE_TELEMETRY"
os.environ.setdefault(SWITCH, "1")  # a user who wants the telemetry can set it to 0

import onnxruntime  # noqa: E402
