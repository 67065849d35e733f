"""Regions with a graph of their own, such as `torch.enable_grad()`, moved into the graph around them.

torch.export keeps such regions as calls of higher-order operators, whose arguments hold a graph. Layers in
that graph would be seen by no pass and by no quantizer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram

from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.attributes import attribute
from qgait_ptq.graph.code_places import find_line
from qgait_ptq.graph.views import first_argument
from qgait_ptq.system.invariants import of_type

AUTOCAST, BRANCH = "wrap_with_autocast", "cond"
# Operators that compute what their graph computes → arguments between the graph and its inputs.
TRANSPARENT = {
    AUTOCAST: 0,
    "wrap_with_set_grad_enabled": 0,
    "tag_activation_checkpoint": 0,
    "wrap_activation_checkpoint": 0,
    "wrap": 0,
    "invoke_subgraph": 1,
}


def inline_regions(program: ExportedProgram) -> ExportedProgram:
    """Move the nodes of all regions into the graph of a program, in place; return the program.

    Args:
        program: from torch.export, captured without enabled regions of `torch.autocast`.

    Raises:
        CaptureError: a branch depends on the input, or an operator runs a graph in another way.
    """
    graph_module = program.graph_module
    if not _regions(graph_module):
        return program
    while regions := _regions(graph_module):  # regions may hold regions
        for region in regions:
            _inline(program, region)
    graph_module.delete_all_unused_submodules()
    graph_module.graph.lint()
    graph_module.recompile()
    return program


def _regions(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Return the calls of operators that take a graph."""
    return [
        node
        for node in graph_module.graph.nodes
        if isinstance(node.target, HigherOrderOperator)
        and any(_graph_of(graph_module, source) is not None for source in node.all_input_nodes)
    ]


def _graph_of(graph_module: fx.GraphModule, argument: object) -> fx.GraphModule | None:
    """Return the graph that an argument names; None where it names something else."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    value: object = attribute(graph_module, str(argument.target))
    return value if isinstance(value, fx.GraphModule) else None


def _inline(program: ExportedProgram, region: fx.Node) -> None:
    """Replace a region by copies of the nodes of its graph."""
    graph = program.graph
    holder, inputs = _chosen_graph(program, region)
    inner = of_type(_graph_of(program.graph_module, holder), fx.GraphModule).graph
    given = iter(inputs)
    copied: dict[fx.Node, Any] = {}
    with graph.inserting_before(region):
        for node in inner.nodes:
            if node.op == "placeholder":
                copied[node] = next(given)
            elif node.op != "output":
                copied[node] = graph.node_copy(node, lambda source: copied[source])
                if node.op == "get_attr":  # a path from the root
                    copied[node].target = f"{holder.target}.{node.target}"
    results = fx.map_arg(first_argument(inner.output_node()), lambda source: copied[source])
    for user in list(region.users):
        if user.target is operator.getitem:
            _replace(program, user, results[user.args[1]])
            graph.erase_node(user)
    if region.users:
        _replace(program, region, results)
    graphs = [node for node in region.all_input_nodes if _graph_of(program.graph_module, node) is not None]
    graph.erase_node(region)
    for node in graphs:
        if not node.users:
            graph.erase_node(node)


def _replace(program: ExportedProgram, node: fx.Node, value: fx.Node) -> None:
    """Let the users of a node, and the signature of the program, read another one."""
    node.replace_all_uses_with(value)
    program.graph_signature.replace_all_uses(node.name, value.name)


def _chosen_graph(program: ExportedProgram, region: fx.Node) -> tuple[fx.Node, Sequence[Any]]:
    """Return the node that names the graph which a region runs, and the inputs of that graph."""
    name = cast(HigherOrderOperator, region.target).name()
    if name == AUTOCAST and region.args[2]:
        raise _refusal(region, "a region of torch.autocast is enabled at some sizes only; disable it")
    if name in TRANSPARENT:
        graphs = [_graph_of(program.graph_module, argument) for argument in region.args]
        position = next(index for index, inner in enumerate(graphs) if inner is not None)
        return of_type(region.args[position], fx.Node), region.args[position + 1 + TRANSPARENT[name] :]
    if name == BRANCH:
        predicate, when_true, when_false, inputs = cast(tuple[Any, ...], region.args)
        return (when_true if _decide(program, region, predicate) else when_false), inputs
    raise _refusal(
        region,
        f"layers inside the operator {name} cannot be quantized; write the computation without it",
    )


def _decide(program: ExportedProgram, region: fx.Node, predicate: object) -> bool:
    """Return the value of a predicate that is the same for every input.

    Raises:
        CaptureError: the predicate depends on the input.
    """
    value = _constant(program, predicate) if isinstance(predicate, fx.Node) else predicate
    if value is not None:
        return bool(value)
    if isinstance(cast(fx.Node, predicate).meta.get("val"), torch.SymBool):
        raise _refusal(
            region,
            "torch.cond chooses a branch by the batch size or the frame count; fix the frame count with "
            "--frames, or write one computation for all sizes",
        )
    raise _refusal(
        region,
        "torch.cond chooses a branch by the values of the input, and layers in branches cannot be quantized; "
        "compute both branches and choose with torch.where",
    )


def _constant(program: ExportedProgram, node: fx.Node) -> Any:
    """Return the value of a node that depends on parameters and buffers only; None for other nodes."""
    signature = program.graph_signature
    if node.op == "placeholder":
        paths = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        path = paths.get(node.name, "")
        changes = path in signature.buffers_to_mutate.values()
        return None if changes else program.state_dict.get(path, program.constants.get(path))
    values = {source: _constant(program, source) for source in node.all_input_nodes}
    if node.op != "call_function" or not values or any(value is None for value in values.values()):
        return None
    function = cast(Callable[..., Any], node.target)
    arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda source: values[source])
    return function(*arguments, **keywords)


def _refusal(region: fx.Node, what: str) -> CaptureError:
    """Return an error that names the line of a region: its own, or the nearest one before it."""
    pending, seen = [region], {region}
    while pending:
        node = pending.pop(0)
        place = find_line(str(node.meta.get("stack_trace") or ""))
        if place is not None:
            return CaptureError(f"{place.file}:{place.line}: {what}\n    {place.code}")
        before = [source for source in node.all_input_nodes if source not in seen]
        seen.update(before)
        pending.extend(before)
    return CaptureError(f"the network: {what}")
