"""Placement: the target's table determines which tensors get a quantizer, before calibration.

`annotate` writes an `Annotation` into the ``meta`` of nodes and changes nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from qgait_ptq.errors import ConfigError
from qgait_ptq.graph.annotation import (
    ANNOTATION_KEY,
    Annotation,
    BiasSpec,
    BitWidths,
    LastLayer,
    OwnSpec,
    PlacementRules,
    SharedSpec,
)
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.operators import ADDITIONS, is_operator, operator_name
from qgait_ptq.graph.shapes import observed_integer, observed_shape
from qgait_ptq.graph.views import WeightedLayer, adds_two_tensors, source
from qgait_ptq.placement.layer_widths import LayerWidths, behind_last_layer, leaves_network
from qgait_ptq.placement.patterns import check_patterns, names_layer
from qgait_ptq.placement.quantizable import weighted_layers, why_in_float
from qgait_ptq.placement.weight_only import (
    NOT_ON_TARGET,
    WeightOnlyPlan,
    plan_weight_only,
    weight_only_layers,
)
from qgait_ptq.quantizer.grid import IntegerGrid
from qgait_ptq.quantizer.pair_order import largest_pair_sum
from qgait_ptq.system.invariants import present


def annotate(graph_module: fx.GraphModule, rules: PlacementRules, widths: BitWidths) -> fx.GraphModule:
    """Annotate the nodes of a simplified graph.

    Args:
        graph_module: the network.
        rules: placement rules of the target.
        widths: bits of weights and activations.

    Raises:
        ConfigError: the graph has no layer to quantize, or a pattern matches no layer.
    """
    layers = weighted_layers(graph_module, rules)
    if not layers:
        raise ConfigError("the network has no convolution and no linear layer with a fixed weight")
    float_layers = weight_only_layers(graph_module)
    check_patterns(widths, layers, float_layers)
    plan = _Plan(graph_module, rules, widths, layers, float_layers)
    if not plan.layers:
        raise ConfigError("include and exclude leave no layer to quantize on integers; change them")
    for node in graph_module.graph.nodes:
        node.meta.pop(ANNOTATION_KEY, None)
    plan.annotate()
    return graph_module


@dataclass
class _Plan:
    """State of one placement: the nodes that compute on integers, and the widths of quantizers."""

    graph_module: fx.GraphModule
    rules: PlacementRules
    widths: BitWidths
    candidates: list[fx.Node]  # all layers whose weight could be quantized
    in_float: list[fx.Node]  # operators in float with stored weights

    def __post_init__(self) -> None:
        self.layers = [layer for layer in self.candidates if self._is_chosen(layer)]
        self.nodes: list[fx.Node] = list(self.graph_module.graph.nodes)
        self.last_layers = {n for n in self.layers if leaves_network(n)}
        self.embedding: set[fx.Node] = set()  # what gives it, or a part of it, in float
        if self.rules.last_layer is not LastLayer.INTEGER:
            self.embedding = {
                node
                for layer in self.last_layers
                for node in behind_last_layer(layer)
                if leaves_network(node)
            }
        self.features = self._read_by_embedding()
        in_float = self.rules.last_layer is LastLayer.FLOAT
        self.float_layers = self.last_layers if in_float else set()
        self.integer: set[fx.Node] = set()
        for node in self.nodes:
            if self._runs_on_integers(node):
                self.integer.add(node)
        self.of_layers = LayerWidths(self.widths, self.rules, self.candidates)
        self.weight_only = self._plan_weight_only()

    def _read_by_embedding(self) -> set[fx.Node]:
        """Return the tensors that the embedding holds beside sums of last layers, also before moves."""
        features = {node for reader in self.embedding for node in reader.all_input_nodes}
        for node in reversed(self.nodes):
            if node in features and is_operator(node, self.rules.value_preserving):
                features.add(source(node))
        return features

    def _plan_weight_only(self) -> dict[fx.Node, WeightOnlyPlan]:
        chosen = [n for n in self.in_float if self._is_chosen(n) and is_operator(n, self.rules.weight_only)]
        return plan_weight_only(
            self.graph_module, chosen, self.layers, self.of_layers.weight_only, self.widths.weight_observer
        )

    def _is_chosen(self, layer: fx.Node) -> bool:
        widths = self.widths
        included = not widths.include or any(names_layer(pattern, layer) for pattern in widths.include)
        return included and not any(names_layer(pattern, layer) for pattern in widths.exclude)

    def annotate(self) -> None:
        quantized = self._quantized_tensors()
        bits = self._wanted_bits(quantized)
        added = {owner for node, owner in quantized.items() if self._is_added(node)}
        apart = added if self.widths.apart else set[fx.Node]()
        for node in self.nodes:
            output: OwnSpec | SharedSpec | None = None
            for_layers = None
            if node in quantized:
                owner = quantized[node]
                output = SharedSpec(owner.name) if owner is not node else self._own(node, bits[node])
                for_layers = self._for_layers(node, bits[owner], apart=owner in apart)
            annotation = Annotation(
                output, for_layers, integer=node in self.integer, reason=self._reason(node)
            )
            if node in self.layers:
                features = node.all_input_nodes[0]  # always quantized, because a layer reads it
                owner = quantized[features]
                width = bits[owner]
                read = self._for_layers(features, width, apart=owner in apart)
                annotation = self._with_weight(node, annotation, read.grid.bits if read else width)
            if node in self.weight_only:
                annotation = replace(annotation, weight_only=self.weight_only[node].specs)
            if annotation != Annotation():
                node.meta[ANNOTATION_KEY] = annotation

    def _runs_on_integers(self, node: fx.Node) -> bool:
        """Return whether the runtime can compute a node on integers, given the nodes before it."""
        rules = self.rules
        if node in self.layers:
            return node not in self.float_layers
        if is_operator(node, rules.absorbed) or is_operator(node, rules.value_preserving):
            return source(node) in self.integer
        if is_operator(node, rules.elementwise) and node not in self.embedding:
            if is_operator(node, ADDITIONS) and not adds_two_tensors(node):
                return False
            inputs = node.all_input_nodes
            return len(inputs) > 0 and all(n in self.integer for n in inputs)
        return False

    def _quantized_tensors(self) -> dict[fx.Node, fx.Node]:
        """Return the nodes with quantized outputs, each with the node that owns the quantizer."""
        quantized: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            if not self._gives_tensor(node) or not self._must_be_quantized(node):
                continue
            moved = source(node) if is_operator(node, self.rules.value_preserving) else None
            quantized[node] = node if moved is None else quantized.get(moved, node)
        return quantized

    def _must_be_quantized(self, node: fx.Node) -> bool:
        if self._absorbed_by_user(node) or self._computes_addition(node):
            return False
        if any(self._reads_integers(user, node) for user in node.users):
            return True
        if node in self.last_layers and self.rules.last_layer is not LastLayer.INTEGER:
            return False
        return self.rules.hand_over and node in self.integer and self._is_last_integer(node)

    def _reads_integers(self, user: fx.Node, node: fx.Node) -> bool:
        """Return whether an operator that reads a tensor needs it quantized."""
        rules = self.rules
        if user in self.layers:
            return source(user) is node
        if is_operator(user, rules.elementwise):
            return user in self.integer
        if is_operator(user, rules.value_preserving):
            return node in self.integer and self._worthwhile(user)
        return False

    def _worthwhile(self, node: fx.Node) -> bool:
        """Return whether a value-preserving operator feeds an integer operator or is the first reduction."""
        rules = self.rules
        if is_operator(node, rules.reducing) and not self._follows_reduction(node):
            return True
        for user in node.users:
            if user in self.layers and source(user) is node:
                return True
            if is_operator(user, rules.elementwise) and user in self.integer:
                return True
            if is_operator(user, rules.value_preserving) and self._worthwhile(user):
                return True
        return False

    def _follows_reduction(self, node: fx.Node) -> bool:
        """Return whether only value-preserving operators lie between this node and an earlier reduction."""
        before = source(node)
        while is_operator(before, self.rules.value_preserving):
            if is_operator(before, self.rules.reducing):
                return True
            before = source(before)
        return False

    def _is_last_integer(self, node: fx.Node) -> bool:
        """Return whether an integer node, such as a layer or an addition, must have a quantized output."""
        if is_operator(node, self.rules.value_preserving):
            return self._worthwhile(node)
        return True

    def _absorbed_by_user(self, node: fx.Node) -> bool:
        """Return whether the only user, such as a ReLU, takes over the quantizer."""
        users = list(node.users)
        mergeable = is_operator(node, self.rules.weighted) or is_operator(node, self.rules.elementwise)
        return mergeable and len(users) == 1 and is_operator(users[0], self.rules.absorbed)

    def _computes_addition(self, node: fx.Node) -> bool:
        """Return whether the addition that reads a node is computed on the node's integer sums."""
        users = list(node.users)
        if not self.rules.one_sided_additions or len(users) != 1 or not is_operator(users[0], ADDITIONS):
            return False
        addition = users[0]
        if addition not in self.integer:
            return False
        # If both inputs are layers, the one with more weights adds: the other is the shortcut.
        givers = [n for n in addition.all_input_nodes if n in self.layers and list(n.users) == [addition]]
        return node in givers and node is max(givers, key=self._weight_size)

    def _weight_size(self, layer: fx.Node) -> int:
        return present(tensor_of(self.graph_module, WeightedLayer(layer).weight)).numel()

    def _gives_tensor(self, node: fx.Node) -> bool:
        return node.op in ("placeholder", "call_function") and observed_shape(node) is not None

    def _wanted_bits(self, quantized: dict[fx.Node, fx.Node]) -> dict[fx.Node, int]:
        """Return the width of each quantizer, which all tensors of its owner share: the widest reader's."""
        bits: dict[fx.Node, int] = {}
        for node, owner in quantized.items():
            of_layers, of_others = self._layers_bits(node), 0
            if self._is_added(node):
                of_others = self.widths.elementwise
            bits[owner] = max(bits.get(owner, 0), of_layers, of_others)
        of_input = self.widths.input
        return {
            owner: of_input
            if of_input and self.of_layers.is_input(owner)
            else width or self.widths.elementwise
            for owner, width in bits.items()
        }

    def _is_added(self, node: fx.Node) -> bool:
        """Return whether an elementwise operator on integers, or the embedding, reads a tensor."""
        if node in self.features:
            return True
        return any(is_operator(user, self.rules.elementwise) and user in self.integer for user in node.users)

    def _layers_bits(self, node: fx.Node) -> int:
        """Return the width at which layers read a tensor, the widest one's; 0 if none reads it."""
        readers = [user for user in node.users if user in self.layers and source(user) is node]
        return max((self.of_layers.activation(layer) for layer in readers), default=0)

    def _for_layers(self, node: fx.Node, bits: int, *, apart: bool) -> OwnSpec | None:
        """Return the quantizer between a tensor of some bits and layers that read it at fewer bits.

        With `apart`, layers that read it at the same bits have one, too.
        """
        of_layers = self._layers_bits(node)
        if of_layers == 0 or self.of_layers.is_input(node):
            return None
        return self._own(node, of_layers) if apart or of_layers < bits else None

    def _own(self, node: fx.Node, bits: int) -> OwnSpec:
        grid = self._activation_grid(bits)
        # Silhouettes lie on an exact grid over [0, 1], which only the full range preserves.
        exact = self.of_layers.is_input(node) and not self.widths.raw
        observer = "minmax" if exact else self.widths.activation_observer
        return OwnSpec(grid, observer)

    def _activation_grid(self, bits: int) -> IntegerGrid:
        return IntegerGrid(bits, self.rules.activation_signed, self.rules.activation_symmetric)

    def _with_weight(self, layer: fx.Node, annotation: Annotation, input_bits: int) -> Annotation:
        bits = self.of_layers.weight(layer)
        grid = IntegerGrid(
            bits, signed=True, symmetric=True, pair_limit=self._pair_limit(layer, bits, input_bits)
        )
        has_bias = tensor_of(self.graph_module, WeightedLayer(layer).bias) is not None
        # A layer that the runtime computes in float also adds its bias in float.
        bias = BiasSpec() if has_bias and annotation.integer else None
        return replace(annotation, weight=OwnSpec(grid, self.widths.weight_observer, 0), bias=bias)

    def _pair_limit(self, layer: fx.Node, bits: int, input_bits: int) -> int | None:
        """Return the limit of a layer's weights in pairs; None if no pair can exceed it."""
        if not (self.rules.saturating_pairs and self.widths.limit_pairs) or _is_depthwise(layer):
            return None
        limit = largest_pair_sum(self._activation_grid(input_bits).quant_max)
        largest = IntegerGrid(bits, signed=True, symmetric=True).quant_max
        return limit if 2 * largest > limit else None

    def _reason(self, node: fx.Node) -> str:
        if node in self.float_layers:
            return "gives the embedding: weights and input are quantized, the sums stay in float"
        if node in self.weight_only:
            return self.weight_only[node].reason
        if node in self.in_float:
            return NOT_ON_TARGET if self._is_chosen(node) else "left in float by include or exclude"
        if is_operator(node, self.rules.weighted) and node not in self.layers:
            return why_in_float(self.graph_module, node) or "left in float by include or exclude"
        if is_operator(node, self.rules.elementwise) and node in self.embedding:
            return "gives the embedding, which stays in float"
        if is_operator(node, self.rules.elementwise) and node not in self.integer:
            if is_operator(node, ADDITIONS) and not adds_two_tensors(node):
                return "adds a number or a multiple of a tensor, for which there is no integer kernel"
            others = {operator_name(n) for n in node.all_input_nodes if n not in self.integer}
            return f"reads {' and '.join(sorted(others))} in float"
        return ""


def _is_depthwise(layer: fx.Node) -> bool:
    """Return whether a layer is depthwise. Such kernels multiply in 32 bits on every processor."""
    view = WeightedLayer(layer)
    weight, groups = observed_shape(view.weight), observed_integer(view.groups)
    return weight is not None and groups > 1 and weight[:2] == (groups, 1)
