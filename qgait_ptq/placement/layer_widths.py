"""Widths of layers: those of the configuration, of edge layers, and of patterns that name single layers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from qgait_ptq.graph.annotation import BitWidths, PlacementRules
from qgait_ptq.graph.frame_inputs import is_network_input
from qgait_ptq.graph.operators import ADDITIONS, BATCH_NORMS, CONCATENATIONS, RESHAPES, aten, is_operator
from qgait_ptq.graph.views import first_argument, operands, source
from qgait_ptq.placement.patterns import names_layer

WITH_STORED = ADDITIONS | {aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.rsub.Scalar}
PASSED = RESHAPES | CONCATENATIONS | BATCH_NORMS | {aten.neg.default}  # between a layer and the embedding


@dataclass(frozen=True)
class LayerWidths:
    """Widths that layers ask for.

    Attributes:
        widths: configured widths.
        rules: placement rules of the target.
        candidates: all layers whose weight could be quantized, in graph order.
    """

    widths: BitWidths
    rules: PlacementRules
    candidates: Sequence[fx.Node]

    def weight(self, layer: fx.Node) -> int:
        """Return the width of a layer's weight."""
        return self._of(layer)[0]

    def activation(self, layer: fx.Node) -> int:
        """Return the width at which a layer reads its input."""
        return self._of(layer)[1]

    def weight_only(self, layer: fx.Node) -> int:
        """Return the width of the weights of an operator in float."""
        reads_input = any(self.is_input(read) for read in layer.all_input_nodes)
        return self._configured(layer, is_edge=reads_input or leaves_network(layer))[0]

    def is_input(self, node: object) -> bool:
        """Return whether a tensor is an input of the network, moved at most."""
        while is_operator(node, self.rules.value_preserving):
            node = first_argument(node)
        return is_network_input(node)

    def _of(self, layer: fx.Node) -> tuple[int, int]:
        is_edge = layer in (self.candidates[0], self.candidates[-1]) or self.is_input(source(layer))
        return self._configured(layer, is_edge=is_edge or leaves_network(layer))

    def _configured(self, layer: fx.Node, *, is_edge: bool) -> tuple[int, int]:
        """Return weight and activation bits of a layer; the last matching pattern wins."""
        widths = self.widths
        weight, activation = widths.weight, widths.activation
        if is_edge:
            weight = activation = widths.edge
        for pattern, (own_weight, own_activation) in widths.layers.items():
            if names_layer(pattern, layer):
                weight, activation = own_weight or weight, own_activation or activation
        return weight, activation


def leaves_network(layer: fx.Node) -> bool:
    """Return whether a layer gives the embedding, or a part of it.

    Between it and the output there are only reshapes, concatenations of parts, sums and products with stored
    tensors and numbers, negations, and batch norms.
    """
    return any(node.op == "output" for node in behind_last_layer(layer))


def behind_last_layer(layer: fx.Node) -> set[fx.Node]:
    """Return the readers of a layer's output, and those behind operators that `leaves_network` passes."""
    pending, seen = list(layer.users), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_operator(node, PASSED) or node.target is operator.getitem or _adds_stored(node):
            pending.extend(node.users)
    return seen


def _adds_stored(node: fx.Node) -> bool:
    """Return whether a tensor is added to or multiplied by a stored one or a number, such as a scale."""
    if not is_operator(node, WITH_STORED):
        return False
    return any(not isinstance(one, fx.Node) or one.op == "get_attr" for one in operands(node))
