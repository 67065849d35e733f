"""Sums and products of masks as logic: ONNX adds and multiplies numbers only."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qgait_ptq.graph.attributes import remove_unused
from qgait_ptq.graph.operators import ADDITIONS, aten, is_operator
from qgait_ptq.graph.shapes import observed_dtype

PRODUCTS = frozenset({aten.mul.Tensor, aten.mul_.Tensor})
LOGIC: tuple[tuple[frozenset[Any], Any], ...] = (
    (ADDITIONS, aten.logical_or.default),
    (PRODUCTS, aten.logical_and.default),
)


def masks_to_logic(graph_module: fx.GraphModule) -> None:
    """Turn sums of bool tensors into *or* and products into *and*, which is what torch computes.

    Args:
        graph_module: with recorded shapes.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        for operators, logic in LOGIC:
            if is_operator(node, operators) and all(
                observed_dtype(argument) is torch.bool for argument in node.args[:2]
            ):
                with graph.inserting_before(node):
                    replacement = graph.call_function(logic, node.args[:2])
                replacement.meta = dict(node.meta)
                node.replace_all_uses_with(replacement)
    remove_unused(graph_module)
