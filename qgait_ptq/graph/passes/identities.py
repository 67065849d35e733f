"""Removing operators without effect in inference, such as dropout, and slices of a whole axis."""

from __future__ import annotations

from torch import fx

from qgait_ptq.graph.operators import IDENTITIES, aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_dtype
from qgait_ptq.graph.views import argument, source

CONVERSIONS = frozenset({aten.to.dtype})
SLICES = frozenset({aten.slice.Tensor})
WHOLE = 2**63 - 1  # end of a slice without an explicit end


def drop_identities(graph_module: fx.GraphModule) -> None:
    """Remove dropout, detach, and conversions of tensors that have the type already."""
    for node in graph_module.graph.nodes:
        if is_operator(node, IDENTITIES) or _keeps_type(node):
            node.replace_all_uses_with(source(node))


def _keeps_type(node: fx.Node) -> bool:
    return is_operator(node, CONVERSIONS) and observed_dtype(source(node)) is argument(node, "dtype")


def drop_whole_slices(graph_module: fx.GraphModule) -> None:
    """Remove slices of a whole axis, such as the colons of ``x[:, :, i]``."""
    for node in list(graph_module.graph.nodes):
        if not is_operator(node, SLICES):
            continue
        start, end, step = (argument(node, name) for name in ("start", "end", "step"))
        if start in (None, 0) and end in (None, WHOLE) and step == 1:
            node.replace_all_uses_with(source(node))


DROP_IDENTITIES = GraphPass("drop-identities", drop_identities)
DROP_WHOLE_SLICES = GraphPass("drop-whole-slices", drop_whole_slices)
