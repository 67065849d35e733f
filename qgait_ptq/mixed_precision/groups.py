"""Groups of quantizers that have one width: weights, and inputs of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import fx

from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.placement.quantized_layers import (
    QuantizedLayer,
    activation_quantizers,
    quantized_layers,
    weight_of,
)


class Kind(StrEnum):
    """Kind of quantized tensor."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class WidthGroup:
    """Quantizers that have one width.

    Layers that read the same tensor share its quantizer, and all calls of a layer have the same widths.
    Their quantizers form one group.

    Attributes:
        kind: kind of quantized tensor, weights or inputs of layers.
        layers: module paths of the layers.
        calls: nodes of the layers for weights, calls of the quantizers for activations.
    """

    kind: Kind
    layers: tuple[str, ...]
    calls: tuple[str, ...]

    @property
    def title(self) -> str:
        """Description for people."""
        more = f" and {len(self.layers) - 1} more" if len(self.layers) > 1 else ""
        return f"{'weights' if self.kind is Kind.WEIGHTS else 'input'} of {self.layers[0]}{more}"


@dataclass(frozen=True)
class LayerCost:
    """Costs of one call of a layer.

    Attributes:
        weights: position of the group of its weight.
        activations: position of the group of its input; None if that width is fixed, as for silhouettes.
        macs: multiply-accumulates on the recorded example.
        elements: number of weight elements; 0 if an earlier call has the same weight.
        name: module path.
    """

    weights: int
    activations: int | None
    macs: int
    elements: int
    name: str


def find_groups(quantized: fx.GraphModule) -> list[WidthGroup]:
    """Return the groups of a graph with inserted quantizers: weights first, both in graph order.

    The quantizer of the silhouettes belongs to no group, because its grid is exact.
    """
    layers = quantized_layers(quantized)
    inputs = activation_quantizers(quantized, inputs=False)
    weights = _connect(layers, lambda layer: layer.weight_path)
    groups = [
        WidthGroup(Kind.WEIGHTS, _names(group), tuple(layer.node.name for layer in group))
        for group in weights
    ]
    read = [layer for layer in layers if layer.input_path in inputs]
    for group in _connect(read, lambda layer: layer.input_path):
        modules = {layer.input_path for layer in group}
        # Several nodes may share one module, such as a maximum and its input.
        first = {module: _first_call(quantized, module) for module in sorted(modules)}
        groups.append(WidthGroup(Kind.ACTIVATIONS, _names(group), tuple(first.values())))
    return groups


def layer_costs(
    quantized: fx.GraphModule, groups: list[WidthGroup], macs: Mapping[str, int]
) -> list[LayerCost]:
    """Return the costs of each call of a layer, with the groups of its widths.

    Args:
        quantized: graph of the groups.
        groups: groups from `find_groups`.
        macs: multiply-accumulates by node name of a layer.
    """
    position = {(group.kind, name): i for i, group in enumerate(groups) for name in group.layers}
    costs, seen = [], set[str]()
    for layer in quantized_layers(quantized):
        name = layer_name(layer.node)
        elements = 0 if layer.weight_path in seen else weight_of(quantized, layer).numel()
        seen.add(layer.weight_path)
        costs.append(
            LayerCost(
                position[Kind.WEIGHTS, name],
                position.get((Kind.ACTIVATIONS, name)),
                macs[layer.node.name],
                elements,
                name,
            )
        )
    return costs


def _names(layers: Iterable[QuantizedLayer]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer_name(layer.node) for layer in layers))


def _connect(
    layers: list[QuantizedLayer], key: Callable[[QuantizedLayer], str]
) -> list[list[QuantizedLayer]]:
    """Return the connected sets of layers, where equal names or equal keys connect two layers."""
    groups: list[list[QuantizedLayer]] = []
    for layer in layers:
        mine, name, own = [layer], layer_name(layer.node), key(layer)
        for group in [g for g in groups if any(layer_name(o.node) == name or key(o) == own for o in g)]:
            groups.remove(group)
            mine = group + mine
        groups.append(mine)
    order = {layer.node.name: i for i, layer in enumerate(layers)}
    ordered = [sorted(group, key=lambda layer: order[layer.node.name]) for group in groups]
    return sorted(ordered, key=lambda group: order[group[0].node.name])


def _first_call(quantized: fx.GraphModule, module: str) -> str:
    return next(n.name for n in quantized.graph.nodes if n.op == "call_module" and n.target == module)
