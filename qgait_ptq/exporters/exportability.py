"""Operators that torch's ONNX exporter does not know, found before anything is calibrated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import fx

from qgait_ptq.capture.quiet import quiet_torch
from qgait_ptq.errors import first_line
from qgait_ptq.graph.operators import aten, is_operator, operator_name
from qgait_ptq.graph.places import place_of
from qgait_ptq.graph.views import argument

FAILED_NODE = re.compile(r"translating node %(\w+)")
LSTMS = frozenset({aten.lstm.input})
ADVICE = (
    "Replace it by other operators in an adapter (--adapter module:class), or quantize the part before it "
    "and keep the rest in float (--capture-submodule NAME)"
)


def unknown_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes for whose operators the exporter has no translation of their own.

    They may still be exportable as compositions of other operators; a trial export shows this.
    """
    calls = [node for node in graph_module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    registry = _translations()
    if registry is None:
        return calls
    return [
        node for node in calls if node.target.namespace == "aten" and not registry.is_registered(node.target)
    ]


def wrongly_translated_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes that the exporter writes as something else, without an error.

    ONNX's LSTM has no projections; torch 2.13 writes one without them.
    """
    return [node for node in graph_module.graph.nodes if is_operator(node, LSTMS) and _has_projections(node)]


def _has_projections(lstm: fx.Node) -> bool:
    """Return whether an LSTM has one more weight in each layer and direction than its biases account for."""
    directions = 2 if argument(lstm, "bidirectional") else 1
    weights = 4 if argument(lstm, "has_biases") else 2
    return len(argument(lstm, "params")) > weights * argument(lstm, "num_layers") * directions


@cache  # it takes half a second to make
def _translations() -> Any | None:
    """Return the exporter's registry of translations; None if this version of torch has no such registry.

    It is a private API, since torch has no public one. Without it, every graph gets a trial export.
    """
    with quiet_torch():
        try:
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            return ONNXRegistry.from_torchlib()
        except (ImportError, AttributeError):
            return None


def explain_export_failure(error: BaseException, graph_module: fx.GraphModule) -> str:
    """Return why a graph cannot be written as ONNX: the operator, its line, and what to do.

    Args:
        error: exception raised by torch.onnx.
        graph_module: graph that was exported.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    names = [match.group(1) for one in chain if (match := FAILED_NODE.search(str(one)))]
    failed = [node for node in graph_module.graph.nodes if node.name in names]
    failed = failed or _behind(names, unknown_nodes(graph_module))
    if not names or not failed:
        reason = chain[-1]
        return f"the graph cannot be written as ONNX ({type(reason).__name__}: {first_line(reason)})"
    return f"torch's ONNX exporter does not support {_named(failed)}. {ADVICE}"


def explain_wrong_translation(nodes: Sequence[fx.Node]) -> str:
    """Return what is wrong with the nodes of `wrongly_translated_nodes`, and what to do."""
    return f"ONNX has no projections (proj_size) for {_named(nodes)}. {ADVICE}"


def _named(nodes: Sequence[fx.Node]) -> str:
    """Return the operators of nodes, each with its line in the user's code."""
    operators = dict.fromkeys(
        f"{operator_name(node)} at {place_of(node)}" if place_of(node) else operator_name(node)
        for node in nodes
    )
    return ", ".join(operators)


def _behind(names: Sequence[str], unknown: list[fx.Node]) -> list[fx.Node]:
    """Return the nodes that the exporter turned into other ones of some names, such as ``_linalg_svd_1``.

    Their operators have similar names. If none is similar, all `unknown` nodes are returned.
    """
    operators = {re.sub(r"_\d+$", "", name).strip("_") for name in names}
    similar = [
        node
        for node in unknown
        if any(operator_name(node).strip("_").startswith(operator) for operator in operators)
    ]
    return similar or unknown
