"""Marker operators, which carry quantizers through torch's ONNX exporter.

Under dynamo, torch.onnx.export supports neither torch.ao's fake-quantize modules nor torch's fake-quantize
operators. Each quantizer is therefore replaced by ``qgait::mark(tensor, index)``, an operator without meaning
for the exporter. ``lowering`` replaces the markers in the ONNX graph by Q/DQ nodes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from qgait_ptq.graph.annotation import annotation_of
from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.graph.views import ModuleCall, WeightedLayer, source
from qgait_ptq.quantizer.fake_quantize import BiasFakeQuantize, FakeQuantize
from qgait_ptq.quantizer.grid import IntegerGrid
from qgait_ptq.system.invariants import of_type

DOMAIN, NAME = "qgait", "Mark"

_LIBRARY = torch.library.Library("qgait", "DEF")
_LIBRARY.define("mark(Tensor x, int index) -> Tensor")


@torch.library.impl(_LIBRARY, "mark", "CompositeExplicitAutograd")
def _mark(x: Tensor, index: int) -> Tensor:
    return x.clone()


@torch.library.register_fake("qgait::mark", lib=_LIBRARY)
def _mark_fake(x: Tensor, index: int) -> Tensor:
    return torch.empty_like(x)


class MarkedKind(Enum):
    """Kind of tensor that a marker quantizes."""

    ACTIVATION = auto()
    WEIGHT = auto()
    FLOAT_WEIGHT = auto()  # stored as integers, but its layer computes in float
    WEIGHT_ONLY = auto()  # the same for operators that no target computes on integers
    BIAS = auto()


@dataclass(frozen=True)
class Marker:
    """Quantizer that a marker represents.

    Attributes:
        kind: kind of quantized tensor.
        name: name of the quantizer; tensors that share a quantizer share the name.
        layer: module path of the layer, for the weight of a convolution or a fully connected layer; empty
            for other tensors.
        scale: scale, float32, scalar or ``[c]``.
        zero_point: zero-point, int32, of the same shape.
        grid: grid of the integers; None for a bias, which is int32.
        axis: axis of a weight with one scale for each channel.
    """

    kind: MarkedKind
    name: str
    layer: str
    scale: Tensor
    zero_point: Tensor
    grid: IntegerGrid | None
    axis: int = 0


def mark_quantizers(graph_module: fx.GraphModule) -> tuple[fx.GraphModule, list[Marker]]:
    """Copy a quantized graph with a marker in place of each fake-quantize module.

    Returns:
        The marked graph, and its markers by index.
    """
    marked = copy.deepcopy(graph_module)
    markers: list[Marker] = []
    for node in list(marked.graph.nodes):
        module = marked.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, FakeQuantize):
            kind, layer = MarkedKind.ACTIVATION, ""
            if module.channel_axis is not None:
                kind, layer = _weight_kind(node)
            name = str(node.target)
            axis = module.channel_axis or 0
            markers.append(Marker(kind, name, layer, module.scale, module.zero_point, module.grid, axis))
        elif isinstance(module, BiasFakeQuantize):
            markers.append(_bias_marker(marked, node))
        else:
            continue
        with marked.graph.inserting_before(node):
            mark = marked.graph.call_function(torch.ops.qgait.mark.default, (source(node), len(markers) - 1))
        node.replace_all_uses_with(mark)
        marked.graph.erase_node(node)
    marked.graph.eliminate_dead_code()
    marked.delete_all_unused_submodules()
    marked.recompile()
    return marked, markers


def _weight_kind(node: fx.Node) -> tuple[MarkedKind, str]:
    """Return the kind and the layer of a weight's quantizer."""
    (layer,) = node.users
    if WeightedLayer.of(layer) is None:
        return MarkedKind.WEIGHT_ONLY, ""
    kind = MarkedKind.WEIGHT if annotation_of(layer).integer else MarkedKind.FLOAT_WEIGHT
    return kind, layer_name(layer)


def _bias_marker(graph_module: fx.GraphModule, node: fx.Node) -> Marker:
    input_scale, weight_scale = (
        of_type(graph_module.get_submodule(str(scale.target).rpartition(".")[0]), FakeQuantize).scale
        for scale in ModuleCall(node).scales
    )
    scale = input_scale * weight_scale
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return Marker(MarkedKind.BIAS, str(node.target), "", scale, zero_point, None)


def translation_table() -> dict[Any, Any]:
    """Return the translation of the marker operator for torch's exporter."""
    # Imported here because it is slow, and errors in the input should be reported first.
    import onnxscript

    _register_schema()
    opset = onnxscript.values.Opset(DOMAIN, 1)

    def mark(x: Any, index: int) -> Any:
        return opset.Mark(x, index=index)

    return {torch.ops.qgait.mark.default: mark}


def _register_schema() -> None:
    if onnx.defs.has(NAME, DOMAIN):
        return
    schema = onnx.defs.OpSchema
    onnx.defs.register_schema(
        schema(
            NAME,
            DOMAIN,
            1,
            inputs=[schema.FormalParameter("x", "T")],
            outputs=[schema.FormalParameter("y", "T")],
            type_constraints=[("T", ["tensor(float)"], "")],
            attributes=[schema.Attribute("index", schema.AttrType.INT, "", required=True)],
        )
    )
