"""What has a width of its own: weights, and the tensors that layers read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import fx

from qgait_ptq.graph.attributes import layer_name
from qgait_ptq.placement.quantized_layers import (
    QuantizedLayer,
    activation_quantizers,
    quantized_layers,
    weight_of,
)


class Kind(StrEnum):
    """What is quantized."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class WidthGroup:
    """Quantizers that have one width together.

    Layers that read the same tensor share its quantizer, and all calls of a layer have the widths of that
    layer, so the width of one decides that of the others.

    Attributes:
        kind: weights of layers, or what layers read.
        layers: module paths of the layers.
        calls: weights: nodes of the layers. Activations: nodes behind which the tensor is quantized.
    """

    kind: Kind
    layers: tuple[str, ...]
    calls: tuple[str, ...]

    @property
    def title(self) -> str:
        """For people."""
        more = f" and {len(self.layers) - 1} more" if len(self.layers) > 1 else ""
        return f"{'weights' if self.kind is Kind.WEIGHTS else 'input'} of {self.layers[0]}{more}"


@dataclass(frozen=True)
class LayerCost:
    """What one call of a layer costs.

    Attributes:
        weights: position of the group of its weight.
        activations: position of the group of its input; None where that has no width to choose, as the
            silhouettes have.
        macs: multiply-accumulates on the recorded example.
        elements: of the weight; 0 where an earlier call has the same weight.
        name: module path.
    """

    weights: int
    activations: int | None
    macs: int
    elements: int
    name: str


def find_groups(quantized: fx.GraphModule) -> list[WidthGroup]:
    """The groups of a graph with inserted quantizers: weights first, both in graph order.

    The quantizer of the silhouettes is none of them: its grid is exact.
    """
    layers = quantized_layers(quantized)
    inputs = activation_quantizers(quantized, inputs=False)
    weights = _connect(layers, lambda layer: layer.weight_path)
    found = [
        WidthGroup(Kind.WEIGHTS, _names(group), tuple(layer.node.name for layer in group))
        for group in weights
    ]
    read = [layer for layer in layers if layer.input_path in inputs]
    for group in _connect(read, lambda layer: layer.input_path):
        modules = {layer.input_path for layer in group}
        # One module may be called behind several nodes that share it, such as a maximum and its input.
        first = {module: _first_call(quantized, module) for module in sorted(modules)}
        found.append(WidthGroup(Kind.ACTIVATIONS, _names(group), tuple(first.values())))
    return found


def layer_costs(
    quantized: fx.GraphModule, groups: list[WidthGroup], macs: Mapping[str, int]
) -> list[LayerCost]:
    """What each call of a layer costs, and which groups decide its widths.

    Args:
        quantized: the graph that the groups are of.
        groups: from `find_groups`.
        macs: node of a layer → its multiply-accumulates.
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
    """Layers in sets: those of one name or of one key are together, and what is together with them."""
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
