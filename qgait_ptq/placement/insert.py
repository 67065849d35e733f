"""Insertion of fake-quantize modules, as annotated."""

from __future__ import annotations

import copy

from torch import fx

from qgait_ptq.graph.annotation import Annotation, OwnSpec, SharedSpec, annotation_of
from qgait_ptq.graph.views import WeightedLayer
from qgait_ptq.quantizer.fake_quantize import BiasFakeQuantize, FakeQuantize
from qgait_ptq.quantizer.observers import ACTIVATION_OBSERVERS, WEIGHT_OBSERVERS
from qgait_ptq.system.invariants import present

ACTIVATION_SUFFIX, WEIGHT_SUFFIX, BIAS_SUFFIX = "_fq", "_weight_fq", "_bias_fq"
FOR_LAYERS_SUFFIX = "_fq_layers"  # no other name ends so, whatever nodes are called


def insert_quantizers(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Copy an annotated graph and insert its fake-quantize modules.

    Activations get a module call after the node, which all users read. Weights and biases get one between
    the parameter and the node that reads it. Tensors that share a quantizer call the same module.
    """
    quantized = copy.deepcopy(graph_module)
    nodes = {node.name: node for node in quantized.graph.nodes}
    for node in list(nodes.values()):
        annotation = annotation_of(node)
        if isinstance(annotation.output, OwnSpec):
            _quantize_output(quantized, node, annotation.output)
    for node in list(nodes.values()):
        annotation = annotation_of(node)
        if isinstance(annotation.output, SharedSpec):
            _call_behind(quantized, node, annotation.output.source + ACTIVATION_SUFFIX)
    for node in list(nodes.values()):
        if (narrower := annotation_of(node).for_layers) is not None:
            _quantize_for_layers(quantized, node, narrower)
    for node in list(nodes.values()):
        annotation = annotation_of(node)
        if annotation.weight is not None:
            _quantize_parameters(quantized, node, annotation)
        for weight in annotation.weight_only:
            _quantize_stored(quantized, nodes[weight.parameter], nodes[weight.reader], weight.quantizer)
    quantized.graph.lint()
    quantized.recompile()
    return quantized


def _quantize_output(graph_module: fx.GraphModule, node: fx.Node, spec: OwnSpec) -> None:
    name = node.name + ACTIVATION_SUFFIX
    graph_module.add_module(name, FakeQuantize(spec.grid, ACTIVATION_OBSERVERS[spec.observer](spec.grid)))
    _call_behind(graph_module, node, name)


def _quantize_for_layers(graph_module: fx.GraphModule, node: fx.Node, spec: OwnSpec) -> None:
    """Let the layers read a quantized tensor through a narrower quantizer; all others read it as it is."""
    name = node.name + FOR_LAYERS_SUFFIX
    graph_module.add_module(name, FakeQuantize(spec.grid, ACTIVATION_OBSERVERS[spec.observer](spec.grid)))
    (quantized,) = node.users
    with graph_module.graph.inserting_after(quantized):
        call = graph_module.graph.call_module(name, (quantized,))
    for user in list(quantized.users):
        if (layer := WeightedLayer.of(user)) is not None and layer.input is quantized:
            user.replace_input_with(quantized, call)


def _call_behind(graph_module: fx.GraphModule, node: fx.Node, module: str) -> None:
    with graph_module.graph.inserting_after(node):
        call = graph_module.graph.call_module(module, (node,))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)


def _quantize_parameters(graph_module: fx.GraphModule, node: fx.Node, annotation: Annotation) -> None:
    layer = present(WeightedLayer.of(node))
    spec = present(annotation.weight)
    axis = present(spec.channel_axis)
    graph, name = graph_module.graph, node.name + WEIGHT_SUFFIX
    observer = WEIGHT_OBSERVERS[spec.observer](spec.grid, axis)
    graph_module.add_module(name, FakeQuantize(spec.grid, observer, axis))
    with graph.inserting_before(node):
        weight = graph.call_module(name, (layer.weight,))
    bias = layer.bias
    if annotation.bias is not None:
        graph_module.add_module(node.name + BIAS_SUFFIX, BiasFakeQuantize())
        with graph.inserting_before(node):
            input_scale = graph.get_attr(f"{layer.input.target}.scale")
            weight_scale = graph.get_attr(f"{name}.scale")
            bias = graph.call_module(node.name + BIAS_SUFFIX, (bias, input_scale, weight_scale))
    layer.replace_parameters(weight, bias)


def _quantize_stored(
    graph_module: fx.GraphModule, parameter: fx.Node, reader: fx.Node, spec: OwnSpec
) -> None:
    """Let a node read a stored weight through a quantizer; readers of one parameter have one each."""
    name = f"{reader.name}_{parameter.name}{WEIGHT_SUFFIX}"
    axis = present(spec.channel_axis)
    graph_module.add_module(
        name, FakeQuantize(spec.grid, WEIGHT_OBSERVERS[spec.observer](spec.grid, axis), axis)
    )
    with graph_module.graph.inserting_before(reader):
        call = graph_module.graph.call_module(name, (parameter,))
    reader.replace_input_with(parameter, call)
