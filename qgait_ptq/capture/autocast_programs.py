"""Exported programs with regions of `torch.autocast`, changed so that they compute in float32.

torch.export writes the types that a region had into a program: conversions, and a check of the type before
each. Without autocast, these checks would fail and these conversions would round to half precision.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.views import argument

AUTOCAST = torch.ops.higher_order.wrap_with_autocast
TYPE_CHECKS = frozenset({aten._assert_tensor_metadata.default})
CONVERSIONS = frozenset({aten.to.dtype, aten._to_copy.default})
HALF = (torch.float16, torch.bfloat16)


def compute_in_float32(network: nn.Module) -> None:
    """Remove the types of half precision from the exported programs in a network, in place.

    Programs without an enabled region of `torch.autocast` stay as they are.

    Args:
        network: copy of the user's network.
    """
    for program in _programs_with_regions(network):
        for graph_module in (one for one in program.modules() if isinstance(one, fx.GraphModule)):
            _remove_half_types(graph_module)


def has_regions(network: nn.Module) -> bool:
    """Return whether an exported program in a network has an enabled region of `torch.autocast`."""
    return bool(_programs_with_regions(network))


def _programs_with_regions(network: nn.Module) -> list[fx.GraphModule]:
    programs = [module for module in network.modules() if isinstance(module, fx.GraphModule)]
    return [program for program in programs if any(map(_is_enabled_region, program.graph.nodes))]


def _is_enabled_region(node: fx.Node) -> bool:
    enabled = 2  # position of the argument; the operator has no schema
    return node.op == "call_function" and node.target is AUTOCAST and node.args[enabled] is True


def _remove_half_types(graph_module: fx.GraphModule) -> None:
    graph = graph_module.graph
    for node in list(graph.nodes):
        if is_operator(node, TYPE_CHECKS) and argument(node, "dtype") in HALF:
            graph.erase_node(node)
        elif is_operator(node, CONVERSIONS) and argument(node, "dtype") in HALF:
            if "dtype" in node.kwargs:
                node.update_kwarg("dtype", torch.float32)
            else:
                node.update_arg(1, torch.float32)
    graph_module.recompile()
