"""Scales with which every processor adds two tensors to the same integers."""

from __future__ import annotations

import torch
from torch import fx

from qgait_ptq.graph.annotation import annotation_of
from qgait_ptq.graph.operators import ADDITIONS, is_operator
from qgait_ptq.graph.views import operands
from qgait_ptq.quantizer.addition_orders import (
    Addition,
    Codes,
    Multiple,
    align_scales,
    find_multiples,
)
from qgait_ptq.quantizer.fake_quantize import FakeQuantize


def align_additions(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Align the scales of added tensors and of their sums, so that all kernels compute the same integers.

    Most scales change by about 0.1 %; see `quantizer.addition_orders`. Tensors that cannot be aligned stay
    unchanged; the exporter reports them from the file. Repeated calls change nothing.

    Args:
        graph_module: graph with inserted quantizers whose ranges are set; changed in place.
    """
    additions, quantizers = _find_additions(graph_module)
    for name, scale in align_scales(additions, _all_codes(quantizers)).items():
        quantizers[name].set_scale(torch.full_like(quantizers[name].scale, scale))
    return graph_module


def aligned_multiples(graph_module: fx.GraphModule) -> dict[str, Multiple]:
    """Return the unit of each aligned quantizer by name: its scale must stay a multiple of it in training.

    Args:
        graph_module: graph with aligned scales.
    """
    additions, quantizers = _find_additions(graph_module)
    return find_multiples(additions, _all_codes(quantizers))


def _find_additions(graph_module: fx.GraphModule) -> tuple[list[Addition], dict[str, FakeQuantize]]:
    """Return the additions of two quantized tensors, and the quantizers around them by name."""
    quantizers: dict[str, FakeQuantize] = {}
    additions = []
    for node in graph_module.graph.nodes:
        if not is_operator(node, ADDITIONS) or not annotation_of(node).integer:
            continue
        calls = [*operands(node), _behind(graph_module, node)]
        modules = [_quantizer(graph_module, call) for call in calls]
        if all(module is not None for module in modules):
            names = [str(call.target) for call in calls]
            quantizers |= dict(zip(names, modules, strict=True))  # type: ignore[arg-type]
            additions.append(Addition(*names))
    return additions, quantizers


def _all_codes(quantizers: dict[str, FakeQuantize]) -> dict[str, Codes]:
    return {name: _codes(quantizer) for name, quantizer in quantizers.items()}


def _behind(graph_module: fx.GraphModule, addition: fx.Node) -> fx.Node | None:
    """Return the call of the quantizer after an addition, or after the rectifier that follows it."""
    users = list(addition.users)
    if len(users) == 1 and _quantizer(graph_module, users[0]) is None:
        users = list(users[0].users)
    return users[0] if len(users) == 1 else None


def _quantizer(graph_module: fx.GraphModule, call: object) -> FakeQuantize | None:
    if not isinstance(call, fx.Node) or call.op != "call_module":
        return None
    module = graph_module.get_submodule(str(call.target))
    return module if isinstance(module, FakeQuantize) and module.scale.ndim == 0 else None


def _codes(quantizer: FakeQuantize) -> Codes:
    grid = quantizer.grid
    return Codes(float(quantizer.scale), int(quantizer.zero_point), grid.quant_min, grid.quant_max)
