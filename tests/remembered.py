"""What makes runs in tests shorter: torch remembers what it reads, and speed is measured briefly."""

from __future__ import annotations

import copy
import functools
from contextlib import suppress


def shorten_speed() -> None:
    """Measure the speed of each quantized file for a moment only, instead of half a second."""
    from qgait_ptq.pipeline import evaluating

    evaluating.SPEED_SECONDS = 0.001


def remember_operators() -> None:
    """Remember the list of operators, and their signatures: together 0.7 s of each export.

    The names are torch's own, which another version may not have.
    """
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal._lazy_import import onnxscript_apis

        onnxscript_apis.get_torchlib_ops = functools.cache(onnxscript_apis.get_torchlib_ops)
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        make = functools.cache(ONNXRegistry.from_torchlib)

        def from_torchlib(*given: int, **named: int) -> ONNXRegistry:
            registry = copy.copy(make(*given, **named))  # an export adds the operators of its table
            registry.functions = {name: list(functions) for name, functions in registry.functions.items()}
            return registry

        ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
    with suppress(ImportError, AttributeError):
        from torch._export import utils

        # It lists all composite operators. Operators that a test registers later have no composite form.
        utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)
