"""Rewriting average pooling with a divisor of its own, which torch's ONNX exporter ignores."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.views import argument

POOLED_AXES: dict[Any, int] = {aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}


def divisors_to_products(graph_module: fx.GraphModule) -> None:
    """Replace an average with a divisor by the mean of the window, times window size over divisor.

    Windows that ``ceil_mode`` cuts off have another mean, so such a pooling stays as it is.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, frozenset(POOLED_AXES)) or argument(node, "ceil_mode"):
            continue
        divisor = argument(node, "divisor_override")
        if divisor is None:
            continue
        kernel, axes = argument(node, "kernel_size"), POOLED_AXES[node.target]
        entries = math.prod(kernel) if len(kernel) == axes else kernel[0] ** axes
        names = ("self", "kernel_size", "stride", "padding")
        with graph.inserting_before(node):
            arguments = (*(argument(node, name) for name in names), False, True)
            mean = graph.call_function(node.target, arguments)
            result = graph.call_function(aten.mul.Tensor, (mean, entries / divisor))
        node.replace_all_uses_with(result)


DIVISORS_TO_PRODUCTS = GraphPass("divisors-to-products", divisors_to_products)
