"""Shorter test runs: operators, captures and exports are remembered, and speed is measured briefly."""

from __future__ import annotations

import copy
import functools
import hashlib
from contextlib import suppress
from typing import Any

import onnx
import torch
from torch import fx, nn

EXPORTS: dict[tuple[str, str, str, bool], bytes] = {}  # models by what they depend on


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


def remember_captures() -> None:
    """Capture equal networks once, and give each caller a copy: captures are a tenth of the suite.

    Networks with hooks, functions or classes of their own are captured anew: what they do is not known from
    their values. Tests of the capture itself call it directly.
    """
    from qgait_ptq.placement import planning

    real, kept = planning.capture, {}

    def capture(network: nn.Module, *given: Any) -> Any:
        settings = _settings(network)
        if settings is None:
            return real(network, *given)
        key = (settings, _digest(network), given)
        if key not in kept:
            kept[key] = copy.deepcopy(real(network, *given))
        network.eval()  # as a capture does
        return copy.deepcopy(kept[key])

    planning.capture = capture


def remember_exports() -> None:
    """Export equal graphs once: exports are a quarter of the suite, and one in six repeats another.

    Two graphs are equal if their code, tensors, free axes, example and opset are. Graphs of several inputs
    are exported anew.
    """
    from qgait_ptq.exporters import onnx_file
    from qgait_ptq.graph.frame_inputs import input_nodes

    real = onnx_file._export

    def export(graph_module: fx.GraphModule, capture: Any, opset: int, table: Any) -> onnx.ModelProto:
        if input_nodes(graph_module):
            return real(graph_module, capture, opset, table)
        axes, example = sorted(capture.free_axes), tuple(capture.empty_example().shape)
        key = (graph_module.code, _digest(graph_module), str((axes, example, opset)), bool(table))
        if key not in EXPORTS:
            EXPORTS[key] = real(graph_module, capture, opset, table).SerializeToString()
        return onnx.load_from_string(EXPORTS[key])

    onnx_file._export = export


def forget_exports() -> None:
    """Export again what was exported before, for tests of whether the bytes are the same."""
    EXPORTS.clear()


def _settings(network: nn.Module) -> str | None:
    """Return classes and attributes of all modules; None if they do not determine the outputs."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "forward")
    lines = [f"{network}"]
    for name, module in network.named_modules():
        kind, values = type(module), vars(module)
        own = {key: value for key, value in values.items() if not key.startswith("_")}
        if any(values.get(hook) for hook in hooks) or "<locals>" in kind.__qualname__:
            return None
        lines.append(f"{name} {kind.__module__}.{kind.__qualname__} {own}")
    text = "\n".join(lines)
    # An address says little of a function: another may have it later.
    return None if " at 0x" in text else text


def _digest(network: nn.Module) -> str:
    """Return a hash of all parameters and buffers."""
    found = hashlib.sha256()
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} {value.requires_grad}".encode())
        found.update(value.detach().flatten().contiguous().cpu().view(torch.uint8).numpy())
    return found.hexdigest()
