"""Groups of quantizers that have one width: weights, and inputs of layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import fx

from qgait_ptq.config.schema import LayerBits
from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.placement.patterns import pattern_of
from qgait_ptq.placement.quantized_layers import (
    activation_quantizers,
    quantized_layers,
    weight_of,
    weight_only_weights,
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
    """Costs of one call of a layer, or of one weight of an operator in float.

    Attributes:
        weights: position of the group of its weight.
        activations: position of the group of its input; None if that width is fixed, as for silhouettes.
        macs: multiply-accumulates on the recorded example.
        elements: number of weight elements; 0 if an earlier call has the same weight.
        name: module path.
        fixed_bits: width of its input if no group has it.
    """

    weights: int
    activations: int | None
    macs: int
    elements: int
    name: str
    fixed_bits: int = 8


def find_groups(quantized: fx.GraphModule) -> list[WidthGroup]:
    """Return the groups of a graph with inserted quantizers: weights first, both in graph order.

    The quantizer of the silhouettes belongs to no group, because its grid is exact.
    """
    layers = quantized_layers(quantized)
    inputs = activation_quantizers(quantized, inputs=False)
    weights = [_Read(layer.node, layer.weight_path) for layer in layers]
    weights += [_Read(weight.node, weight.path) for weight in weight_only_weights(quantized)]
    groups = [
        WidthGroup(Kind.WEIGHTS, _names(group), tuple(dict.fromkeys(read.node.name for read in group)))
        for group in _connect(quantized, weights)
    ]
    reads = [_Read(layer.node, layer.input_path) for layer in layers if layer.input_path in inputs]
    for group in _connect(quantized, reads):
        # Several nodes may share one module, such as a maximum and its input.
        first = {module: _first_call(quantized, module) for module in sorted({read.path for read in group})}
        groups.append(WidthGroup(Kind.ACTIVATIONS, _names(group), tuple(first.values())))
    return groups


@dataclass(frozen=True)
class _Read:
    """A layer that reads a weight or an input.

    Attributes:
        node: node of the layer.
        path: path of the parameter, or of the quantizer of the input.
    """

    node: fx.Node
    path: str


def layer_costs(
    quantized: fx.GraphModule, groups: list[WidthGroup], macs: Mapping[str, int]
) -> list[LayerCost]:
    """Return the costs of each call of a layer, with the groups of its widths.

    Args:
        quantized: graph of the groups; inputs that no group has keep the widths that they have in it.
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
                layer.input_quantizer(quantized).grid.bits,
            )
        )
    for weight in weight_only_weights(quantized):
        name = layer_name(weight.node)
        elements = 0 if weight.path in seen else weight.value(quantized).numel()
        seen.add(weight.path)
        # Operations in float do not depend on the width of the stored weight.
        costs.append(LayerCost(position[Kind.WEIGHTS, name], None, 0, elements, name))
    return costs


def own_widths(groups: Sequence[WidthGroup], widths: Sequence[int]) -> dict[str, LayerBits]:
    """Return the entries of a configuration that give each group its width, by the pattern of a layer."""
    own: dict[str, dict[str, int]] = {}
    for group, bits in zip(groups, widths, strict=True):
        key = "weight_bits" if group.kind is Kind.WEIGHTS else "activation_bits"
        for name in group.layers:
            own.setdefault(name, {})[key] = bits
    # A pattern also matches layers inside a module, and the last match wins: inner modules come last.
    return {pattern_of(name): LayerBits(**own[name]) for name in sorted(own, key=len)}


def _names(reads: Iterable[_Read]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer_name(read.node) for read in reads))


def _connect(quantized: fx.GraphModule, reads: list[_Read]) -> list[list[_Read]]:
    """Return the connected sets of reads, where equal names or equal paths connect two."""
    groups: list[list[_Read]] = []
    for read in reads:
        mine, name = [read], layer_name(read.node)
        for group in [g for g in groups if any(layer_name(o.node) == name or o.path == read.path for o in g)]:
            groups.remove(group)
            mine = group + mine
        groups.append(mine)
    order = {node: i for i, node in enumerate(quantized.graph.nodes)}
    ordered = [sorted(group, key=lambda read: order[read.node]) for group in groups]
    return sorted(ordered, key=lambda group: order[group[0].node])


def _first_call(quantized: fx.GraphModule, module: str) -> str:
    return next(n.name for n in quantized.graph.nodes if n.op == "call_module" and n.target == module)
