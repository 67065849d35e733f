"""A graph with inserted quantizers, seen layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from qgait_ptq.graph.annotation import annotation_of
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.frame_parts import is_network_input
from qgait_ptq.graph.operators import VALUE_PRESERVING, is_operator
from qgait_ptq.quantizer.fake_quantize import BiasFakeQuantize, FakeQuantize
from qgait_ptq.system.invariants import of_type, present


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer whose weight is quantized, and the nodes and modules around it.

    Attributes:
        node: the layer.
        weight_call: call of its weight's quantizer.
        weight_parameter: names the float weight.
        weight_quantizer: the module.
        bias_call: call of its bias's quantizer; None where the bias stays in float.
        bias_parameter: names the float bias; None where there is none.
        bias_quantizer: the module; None where the bias stays in float.
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


def quantized_layers(graph_module: fx.GraphModule) -> list[QuantizedLayer]:
    """The layers with a quantized weight, in graph order."""
    return [
        _describe(graph_module, node)
        for node in graph_module.graph.nodes
        if annotation_of(node).weight is not None
    ]


def _describe(graph_module: fx.GraphModule, node: fx.Node) -> QuantizedLayer:
    weight_call, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    weight_call = of_type(weight_call, fx.Node)
    weight_quantizer = graph_module.get_submodule(str(weight_call.target))
    weight_parameter = weight_call.args[0]
    weight_quantizer = of_type(weight_quantizer, FakeQuantize)
    weight_parameter = of_type(weight_parameter, fx.Node)
    bias_call = bias_quantizer = None
    bias_parameter = bias if isinstance(bias, fx.Node) else None
    if bias_parameter is not None and bias_parameter.op == "call_module":
        bias_call = bias_parameter
        module = graph_module.get_submodule(str(bias_call.target))
        module = of_type(module, BiasFakeQuantize)
        bias_quantizer, parameter = module, bias_call.args[0]
        parameter = of_type(parameter, fx.Node)
        bias_parameter = parameter
    return QuantizedLayer(
        node, weight_call, weight_parameter, weight_quantizer, bias_call, bias_parameter, bias_quantizer
    )


def activation_quantizers(graph_module: fx.GraphModule, *, inputs: bool = True) -> dict[str, FakeQuantize]:
    """The quantizers of activations, by module name, in the order of their first call.

    Args:
        graph_module: with inserted quantizers.
        inputs: whether those of the silhouettes are wanted, whose grid is exact as it is.
    """
    found = {}
    for node in graph_module.graph.nodes:
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, FakeQuantize) or module.channel_axis is not None:
            continue
        if inputs or not _is_input(node.args[0]):
            found[str(node.target)] = module
    return found


def weight_of(graph_module: fx.GraphModule, layer: QuantizedLayer) -> Tensor:
    """The float weight of a layer."""
    weight = tensor_of(graph_module, layer.weight_parameter)
    return present(weight)


def _is_input(node: object) -> bool:
    while is_operator(node, VALUE_PRESERVING) or (isinstance(node, fx.Node) and node.op == "call_module"):
        node = node.args[0]  # type: ignore[attr-defined]
    return is_network_input(node)
