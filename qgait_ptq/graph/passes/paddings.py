"""Convolutions whose padding is a word, ``same`` or ``valid``, as convolutions with numbers."""

from __future__ import annotations

from torch import fx

from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import argument
from qgait_ptq.system.invariants import present

WITH_NUMBERS = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}


def paddings_to_numbers(graph_module: fx.GraphModule) -> None:
    """Replace words by numbers. Where an even kernel needs one zero more behind, a padding does it."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, frozenset(WITH_NUMBERS)):
            continue
        kernel = present(observed_shape(argument(node, "weight")))[2:]
        dilation = _one_each(argument(node, "dilation"), len(kernel))
        totals = [
            d * (size - 1) if argument(node, "padding") == "same" else 0
            for d, size in zip(dilation, kernel, strict=True)
        ]
        features, padding = argument(node, "input"), [total // 2 for total in totals]
        with graph.inserting_before(node):
            if any(total % 2 for total in totals):
                sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
                features = graph.call_function(aten.constant_pad_nd.default, (features, sides))
                padding = [0] * len(kernel)
            others = [argument(node, name) for name in ("weight", "bias", "stride")]
            arguments = (features, *others, padding, dilation, argument(node, "groups"))
            plain = graph.call_function(WITH_NUMBERS[node.target], arguments)
        node.replace_all_uses_with(plain)


def _one_each(value: int | list[int], axes: int) -> list[int]:
    """Return one number for each axis; a single one is for all."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * axes if len(numbers) == 1 else numbers


PADDINGS_TO_NUMBERS = GraphPass("paddings-to-numbers", paddings_to_numbers)
