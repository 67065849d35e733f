"""Rewriting sums and products of masks as logic, because ONNX only adds and multiplies numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qgait_ptq.graph.operators import ADDITIONS, aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_dtype
from qgait_ptq.graph.views import operands

PRODUCTS = frozenset({aten.mul.Tensor, aten.mul_.Tensor})
LOGIC: tuple[tuple[frozenset[Any], Any], ...] = (
    (ADDITIONS, aten.logical_or.default),
    (PRODUCTS, aten.logical_and.default),
)


def masks_to_logic(graph_module: fx.GraphModule) -> None:
    """Turn sums of bool tensors into *or* and products into *and*, as torch computes them."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        for operators, logic in LOGIC:
            if is_operator(node, operators) and all(
                observed_dtype(operand) is torch.bool for operand in operands(node)
            ):
                with graph.inserting_before(node):
                    replacement = graph.call_function(logic, operands(node))
                replacement.meta = dict(node.meta)
                node.replace_all_uses_with(replacement)


MASKS_TO_LOGIC = GraphPass("masks-to-logic", masks_to_logic)
