"""The layers with weights of a network as a table: shapes, costs and quantization."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.gait.metrics import decibels
from qgait_ptq.graph.annotation import OwnSpec, SharedSpec, annotation_of
from qgait_ptq.graph.macs import count_macs
from qgait_ptq.graph.operators import VALUE_PRESERVING, WEIGHTED, is_operator, operator_name
from qgait_ptq.graph.recorder import run_recorded
from qgait_ptq.graph.shapes import observed_integer, observed_shape
from qgait_ptq.graph.stored_weights import StoredWeight, layer_name, stored_weights
from qgait_ptq.graph.views import ModuleCall, WeightedLayer
from qgait_ptq.placement.quantized_layers import weight_only_weights
from qgait_ptq.quantizer.fake_quantize import FakeQuantize
from qgait_ptq.quantizer.pair_order import largest_pair_sum


@dataclass(frozen=True)
class LayerPlan:
    """One layer with weights, as planned.

    Attributes:
        name: module path.
        node: name in the graph. Layers that share a weight have the same path, but different nodes.
        operator: operator name, such as ``conv2d``.
        input_shape: shape of the input on the recorded example.
        output_shape: shape of the output on the recorded example.
        parameters: number of parameters of weight and bias.
        weight: name of the stored weight, which layers or calls may share.
        macs: multiply-accumulates on the recorded example.
        weight_bits: width of the weight; None if it stays in float.
        activation_bits: width of the input; None if it stays in float.
        integer: whether the runtime computes the layer on integers.
        note: reason why it does not.
        weight_only: whether only weights can be quantized, because no target computes the operator on
            integers.
    """

    name: str
    node: str
    operator: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    weight: str
    macs: int
    weight_bits: int | None
    activation_bits: int | None
    integer: bool
    note: str
    weight_only: bool = False


@dataclass(frozen=True)
class LayerShape:
    """The weight of a layer that the runtime computes on integers.

    Attributes:
        name: module path.
        weight: shape ``[o, c / groups, *kernel]``; a fully connected layer has a kernel of one.
        groups: number of channel groups.
        can_saturate: whether pair sums of the layer can exceed 16 bits.
    """

    name: str
    weight: tuple[int, ...]
    groups: int
    can_saturate: bool


def integer_layers(graph_module: fx.GraphModule) -> list[LayerShape]:
    """Return the layers of an annotated graph that the runtime computes on integers, in graph order."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    shapes = []
    for node in nodes.values():
        layer, annotation = WeightedLayer.of(node), annotation_of(node)
        if layer is None or annotation.weight is None or not annotation.integer:
            continue
        weight, bits = observed_shape(layer.weight), _input_bits(layer, nodes)
        if weight is None or bits is None:
            continue
        grid = annotation.weight.grid
        limit = largest_pair_sum(2**bits - 1)
        can_saturate = grid.pair_limit is None and 2 * grid.quant_max > limit
        groups = observed_integer(layer.groups)
        shape = tuple(weight) if len(weight) > 2 else (*weight, 1)
        shapes.append(LayerShape(layer_name(node), shape, groups, can_saturate))
    return shapes


def list_layers(graph_module: fx.GraphModule) -> list[LayerPlan]:
    """Return the layers with weights of an annotated graph with recorded shapes, in graph order.

    These are the weighted layers, and operators in float that read a stored weight, such as an LSTM.
    """
    nodes = {node.name: node for node in graph_module.graph.nodes}
    plans = []
    for node in nodes.values():
        layer = WeightedLayer.of(node)
        if layer is not None:
            plans.append(_weighted_plan(layer, nodes))
        elif stored := stored_weights(graph_module, node):
            plans.append(_weight_only_plan(node, stored))
    return plans


def _weighted_plan(layer: WeightedLayer, nodes: dict[str, fx.Node]) -> LayerPlan:
    node, annotation = layer.node, annotation_of(layer.node)
    return LayerPlan(
        name=layer_name(node),
        node=node.name,
        operator=operator_name(node),
        input_shape=observed_shape(layer.input) or (),
        output_shape=observed_shape(node) or (),
        parameters=sum(map(_numel, filter(None, (layer.weight, layer.bias)))),
        weight=str(layer.weight.target),
        macs=count_macs(node),
        weight_bits=annotation.weight.grid.bits if annotation.weight else None,
        activation_bits=_input_bits(layer, nodes),
        integer=annotation.integer,
        note=annotation.reason,
    )


def _weight_only_plan(node: fx.Node, stored: list[StoredWeight]) -> LayerPlan:
    specs = annotation_of(node).weight_only
    parameters = [weight.parameter for weight in stored]
    computed = [read for read in node.all_input_nodes if read.op != "get_attr" and observed_shape(read)]
    results = [node, *(user for user in node.users if user.target is operator.getitem)]
    return LayerPlan(
        name=layer_name(node),
        node=node.name,
        operator=operator_name(node),
        input_shape=next((shape for read in computed if (shape := observed_shape(read))), ()),
        output_shape=next((shape for result in results if (shape := observed_shape(result))), ()),
        parameters=sum(map(_numel, {*parameters, *(r for r in node.all_input_nodes if r.op == "get_attr")})),
        weight=str(parameters[0].target),
        macs=count_macs(node),
        weight_bits=specs[0].quantizer.grid.bits if specs else None,
        activation_bits=None,
        integer=False,
        note=annotation_of(node).reason,
        weight_only=True,
    )


def _numel(node: fx.Node) -> int:
    return math.prod(observed_shape(node) or (0,))


def count_parameters(layers: Iterable[LayerPlan]) -> int:
    """Return the number of parameters of all layers; shared parameters count once."""
    return sum({layer.weight: layer.parameters for layer in layers}.values())


def float_operators(graph_module: fx.GraphModule) -> dict[str, str]:
    """Return the operators without weights that compute in float, with the reasons."""
    reasons_by_name: dict[str, set[str]] = {}
    for node in graph_module.graph.nodes:
        computes = node.op == "call_function" and observed_shape(node) is not None
        moves_only = is_operator(node, VALUE_PRESERVING) or is_operator(node, WEIGHTED)
        if computes and not moves_only and not annotation_of(node).integer:
            annotation = annotation_of(node)
            reason = "" if annotation.weight_only else annotation.reason
            reason = reason or "no integer kernel on this target"
            reasons_by_name.setdefault(operator_name(node), set()).add(reason)
    return {name: "; ".join(sorted(reasons)) for name, reasons in reasons_by_name.items()}


def _input_bits(layer: WeightedLayer, nodes: dict[str, fx.Node]) -> int | None:
    annotation = annotation_of(layer.input)
    spec = annotation.for_layers or annotation.output
    while isinstance(spec, SharedSpec):
        spec = annotation_of(nodes[spec.source]).output
    return spec.grid.bits if isinstance(spec, OwnSpec) else None


def layer_scales(graph_module: fx.GraphModule) -> dict[str, dict[str, Any]]:
    """Return the scales of a calibrated graph's layers, by node.

    Each layer has ``activation_scale``, ``activation_zero_point``, the ``activation_range`` that these
    represent, and ``weight_scales``, if quantized. An operator in float only has ``weight_scales``: those of
    its weights, one after the other.
    """
    scales: dict[str, dict[str, Any]] = {}
    for weight in weight_only_weights(graph_module):
        of_node = scales.setdefault(weight.node.name, {"weight_scales": []})
        of_node["weight_scales"] += weight.quantizer.scale.flatten().tolist()
    for node in graph_module.graph.nodes:
        layer = WeightedLayer.of(node)
        if layer is None:
            continue
        entry: dict[str, Any] = {}
        for read in (layer.input, layer.weight):
            call = ModuleCall.of(read)
            quantizer = graph_module.get_submodule(call.path) if call is not None else None
            if not isinstance(quantizer, FakeQuantize):
                continue
            if read is layer.weight:
                entry["weight_scales"] = quantizer.scale.flatten().tolist()
            else:
                entry["activation_scale"] = quantizer.scale.item()
                entry["activation_zero_point"] = quantizer.zero_point.item()
                entry["activation_range"] = [
                    entry["activation_scale"] * (end - entry["activation_zero_point"])
                    for end in (quantizer.grid.quant_min, quantizer.grid.quant_max)
                ]
        scales[node.name] = entry
    return scales


def outputs_of(graph_module: fx.GraphModule, names: set[str], batch: Tensor) -> dict[str, Tensor]:
    """Run a graph, and return the outputs of some nodes by their names; of several outputs, the first.

    Args:
        graph_module: graph to run.
        names: names of the nodes.
        batch: silhouettes ``[n, s, h, w]``.
    """
    outputs: dict[str, Tensor] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node.name in names:
            outputs[node.name] = value[0] if isinstance(value, tuple) else value

    run_recorded(graph_module, batch, keep)
    return outputs


def layer_sqnr(
    reference: fx.GraphModule, quantized: fx.GraphModule, batches: Iterable[Tensor]
) -> dict[str, float]:
    """Return the SQNR of the output of each layer with weights in decibels, by node.

    Both graphs run on the same sequences, so the SQNR of a layer includes errors of earlier layers. It is at
    most 200 dB.

    Args:
        reference: float graph.
        quantized: the same graph with inserted quantizers; its nodes have the same names.
        batches: silhouettes ``[n, s, h, w]``.
    """
    layers = {
        node.name
        for node in reference.graph.nodes
        if is_operator(node, WEIGHTED) or annotation_of(node).weight_only
    }
    signal, noise = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    with torch.inference_mode():
        for batch in batches:
            both = [outputs_of(module, layers, batch) for module in (reference, quantized)]
            for name in layers:
                expected, actual = (outputs[name].double() for outputs in both)
                signal[name] += expected.square().sum().item()
                noise[name] += (expected - actual).square().sum().item()
    return {name: decibels(signal[name], noise[name]) for name in layers}
