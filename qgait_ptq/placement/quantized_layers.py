"""A graph with inserted quantizers, seen layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from qgait_ptq.graph.annotation import annotation_of
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.frame_inputs import is_network_input
from qgait_ptq.graph.operators import VALUE_PRESERVING, is_operator
from qgait_ptq.graph.views import ModuleCall, WeightedLayer, first_argument, source
from qgait_ptq.quantizer.fake_quantize import BiasFakeQuantize, FakeQuantize
from qgait_ptq.system.invariants import of_type, present


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer whose weight is quantized, and the nodes and modules around it.

    Attributes:
        node: node of the layer.
        weight_call: call of the weight's quantizer.
        weight_parameter: node of the float weight.
        weight_quantizer: quantizer of the weight.
        bias_call: call of the bias's quantizer; None if the bias stays in float.
        bias_parameter: node of the float bias; None if there is no bias.
        bias_quantizer: quantizer of the bias; None if the bias stays in float.
    """

    node: fx.Node
    weight_call: fx.Node
    weight_parameter: fx.Node
    weight_quantizer: FakeQuantize
    bias_call: fx.Node | None
    bias_parameter: fx.Node | None
    bias_quantizer: BiasFakeQuantize | None

    @property
    def weight_path(self) -> str:
        """Path of the weight's parameter."""
        return str(self.weight_parameter.target)

    @property
    def bias_path(self) -> str | None:
        """Path of the bias's parameter."""
        return None if self.bias_parameter is None else str(self.bias_parameter.target)

    def reads_any(self, paths: frozenset[str]) -> bool:
        """Return whether the parameter of the weight or the bias has one of these paths."""
        return self.weight_path in paths or self.bias_path in paths

    def input_quantizer(self, graph_module: fx.GraphModule) -> FakeQuantize:
        """Return the quantizer of the layer's input."""
        call = present(ModuleCall.of(present(WeightedLayer.of(self.node)).input))
        return of_type(graph_module.get_submodule(call.path), FakeQuantize)

    @property
    def input_path(self) -> str:
        """Path of the quantizer of the layer's input."""
        return str(present(WeightedLayer.of(self.node)).input.target)


def quantized_layers(graph_module: fx.GraphModule) -> list[QuantizedLayer]:
    """Return the layers with a quantized weight, in graph order."""
    return [
        _describe(graph_module, node)
        for node in graph_module.graph.nodes
        if annotation_of(node).weight is not None
    ]


def _describe(graph_module: fx.GraphModule, node: fx.Node) -> QuantizedLayer:
    layer = present(WeightedLayer.of(node))
    weight, bias = present(ModuleCall.of(layer.weight)), ModuleCall.of(layer.bias)
    weight_quantizer = of_type(graph_module.get_submodule(weight.path), FakeQuantize)
    if bias is None:
        return QuantizedLayer(node, weight.node, weight.input, weight_quantizer, None, layer.bias, None)
    bias_quantizer = of_type(graph_module.get_submodule(bias.path), BiasFakeQuantize)
    return QuantizedLayer(
        node, weight.node, weight.input, weight_quantizer, bias.node, bias.input, bias_quantizer
    )


@dataclass(frozen=True)
class WeightOnlyWeight:
    """A stored weight of an operator that computes in float.

    Attributes:
        node: node of the operator.
        call: call of the weight's quantizer.
        parameter: node of the float weight.
        quantizer: quantizer of the weight.
    """

    node: fx.Node
    call: fx.Node
    parameter: fx.Node
    quantizer: FakeQuantize

    @property
    def path(self) -> str:
        """Path of the weight's parameter."""
        return str(self.parameter.target)

    def value(self, graph_module: fx.GraphModule) -> Tensor:
        """Return the float weight."""
        return present(tensor_of(graph_module, self.parameter))


def weight_only_weights(graph_module: fx.GraphModule) -> list[WeightOnlyWeight]:
    """Return the stored weights of operators in float that are quantized, in graph order."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    found = []
    for node in nodes.values():
        for spec in annotation_of(node).weight_only:
            calls = map(ModuleCall.of, nodes[spec.reader].all_input_nodes)
            call = next(c for c in calls if c is not None and c.input.name == spec.parameter)
            quantizer = of_type(graph_module.get_submodule(call.path), FakeQuantize)
            found.append(WeightOnlyWeight(node, call.node, call.input, quantizer))
    return found


def activation_quantizers(graph_module: fx.GraphModule, *, inputs: bool = True) -> dict[str, FakeQuantize]:
    """Return the quantizers of activations by module name, in the order of their first call.

    Args:
        graph_module: graph with inserted quantizers.
        inputs: whether to include quantizers of network inputs, whose grid is exact.
    """
    quantizers = {}
    for node in graph_module.graph.nodes:
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, FakeQuantize) or module.channel_axis is not None:
            continue
        if inputs or not _is_input(source(node)):
            quantizers[str(node.target)] = module
    return quantizers


def weight_of(graph_module: fx.GraphModule, layer: QuantizedLayer) -> Tensor:
    """Return the float weight of a layer."""
    weight = tensor_of(graph_module, layer.weight_parameter)
    return present(weight)


def _is_input(node: object) -> bool:
    while is_operator(node, VALUE_PRESERVING) or (isinstance(node, fx.Node) and node.op == "call_module"):
        node = first_argument(node)
    return is_network_input(node)
