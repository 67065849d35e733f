"""Export of a network by torch.export, as a plain FX graph of ATen operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from qgait_ptq.capture.diagnosis import explain_failure
from qgait_ptq.capture.exportable import ExportableOperators
from qgait_ptq.capture.inlining import inline_regions
from qgait_ptq.capture.quiet import quiet_torch
from qgait_ptq.capture.side_effects import restore_usual_forms, without_side_effects
from qgait_ptq.capture.size_decisions import Decision, DecisionRecorder
from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.attributes import ORIGIN_KEY, remove_unused
from qgait_ptq.graph.operators import RECURRENT
from qgait_ptq.graph.places import PLACE_KEY, read_place
from qgait_ptq.system.invariants import of_type

RECURRENT_NAMES = frozenset(operator.overloadpacket.__name__ for operator in RECURRENT)


@dataclass(frozen=True)
class Exported:
    """A network exported by torch.

    Attributes:
        program: program of torch.export, with its conditions on sizes.
        graph_module: the same as a plain graph.
        fixed_axes: axes that torch made constants, though they were left free.
        decisions: conditions on sizes, with the code that needs them.
    """

    program: ExportedProgram
    graph_module: fx.GraphModule
    fixed_axes: set[int]
    decisions: list[Decision]


def export_network(network: nn.Module, example: Tensor, free_axes: frozenset[int]) -> Exported:
    """Export a network.

    Args:
        network: network in eval mode.
        example: its input.
        free_axes: axes whose size is left to torch.

    Raises:
        CaptureError: torch.export does not support the network.
    """
    dynamic = dict.fromkeys(sorted(free_axes), Dim.AUTO)
    try:
        with quiet_torch(), torch.no_grad(), ExportableOperators(), DecisionRecorder() as recorder:
            program = torch.export.export(network, (example,), dynamic_shapes=(dynamic,), strict=False)
        with quiet_torch(), torch.no_grad():
            graph_module = without_side_effects(inline_regions(program)).module(check_guards=False)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(explain_failure(error, "torch.export cannot capture the network")) from error
    graph_module = of_type(graph_module, fx.GraphModule)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    shape = placeholders[0].meta["val"].shape
    fixed = {
        axis
        for axis in dynamic
        if is_concrete_int(shape[axis]) and not _only_by_recurrence(recorder.decisions, example.shape[axis])
    }
    graph_module = _plain_graph_module(graph_module)
    restore_usual_forms(graph_module)
    _name_as_inside(graph_module, network)
    return Exported(program, graph_module, fixed, recorder.decisions)


def _only_by_recurrence(decisions: Sequence[Decision], size: int) -> bool:
    """Return whether only recurrent operators fix a size.

    Their check of shapes compares sizes, so that torch notes a number. The operator itself takes any.
    """
    fixing = {decision.operator for decision in decisions if decision.fixes(size)}
    return bool(fixing) and fixing <= RECURRENT_NAMES


def _plain_graph_module(exported: fx.GraphModule) -> fx.GraphModule:
    """Return a graph with one input and one output, without metadata and unused buffers."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op == "output":
            (value,) = node.args
            graph.output(copied[value[0] if isinstance(value, (tuple, list)) else value])
        else:
            copied[node] = graph.node_copy(node, lambda source: copied[source])
            place = read_place(node.meta.get("stack_trace"))
            copied[node].meta = {PLACE_KEY: place} if place else {}
    graph_module = fx.GraphModule(exported, graph)
    remove_unused(graph_module)
    graph_module.training = False
    return graph_module


def unwrap(network: nn.Module) -> tuple[nn.Module, str]:
    """Return the user's network without wrappers, such as adapters, and its path with a final dot."""
    prefix = ""
    while [name for name, _ in network.named_children()] == ["network"] and not network._parameters:
        network, prefix = network.get_submodule("network"), f"{prefix}network."
    return network, prefix


def _name_as_inside(graph_module: fx.GraphModule, network: nn.Module) -> None:
    """Give parameters their names in the user's network."""
    _, prefix = unwrap(network)
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith(prefix):
            node.meta[ORIGIN_KEY] = str(node.target).removeprefix(prefix)
