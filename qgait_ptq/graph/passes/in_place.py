"""In-place operators as their usual forms.

Capture leaves an in-place operator where only readers of its result see the change. Stages that keep values
of nodes would see it, too: the output of a convolution would be that of the ReLU behind it.
"""

from __future__ import annotations

import itertools

import torch
from torch import fx

from qgait_ptq.graph.passes.graph_pass import GraphPass


def replace_in_place_operators(graph_module: fx.GraphModule) -> None:
    """Give each in-place operator its usual form, such as ``relu`` for ``relu_``. Nodes keep their names."""
    for node in graph_module.graph.nodes:
        usual = _usual_form(node)
        if usual is not None:
            node.target = usual


def _usual_form(node: fx.Node) -> torch._ops.OpOverload | None:
    """Return the operator with the same arguments that does not write to its input; None if there is none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    namespace, _, name = target._schema.name.partition("::")
    if namespace != "aten" or not name.endswith("_"):
        return None
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    usual = getattr(packet, target._overloadname, None)
    if usual is None or usual._schema.is_mutable:
        return None
    pairs = itertools.zip_longest(usual._schema.arguments, target._schema.arguments)
    same = all(one and other and str(one.type) == str(other.type) for one, other in pairs)
    named = {argument.name for argument in usual._schema.arguments}
    return usual if same and named.issuperset(node.kwargs) else None


REPLACE_IN_PLACE_OPERATORS = GraphPass("replace-in-place-operators", replace_in_place_operators)
