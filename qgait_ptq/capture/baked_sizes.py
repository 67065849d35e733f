"""Search for the node in which a graph holds a size as a number, from captures at two sizes."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from qgait_ptq.graph.attributes import attribute
from qgait_ptq.graph.operators import operator_name
from qgait_ptq.graph.places import place_of


def find_baked_size(first: fx.GraphModule, second: fx.GraphModule) -> str:
    """Return the operator and the line of the first node in which two captures of a network differ.

    Args:
        first: capture at one size.
        second: capture at another size.

    Returns:
        Text such as ``div at net.py:12``; empty if the captures have the same constants.
    """
    for one, other in zip(first.graph.nodes, second.graph.nodes, strict=False):
        if one.op != other.op or (one.op != "get_attr" and one.target != other.target):
            return _describe(one)
        if one.op == "get_attr" and not _same_values(first, one, second, other):
            return _describe(next(iter(one.users), one))
        if _constants(one) != _constants(other):
            return _describe(one)
    return ""


def _describe(node: fx.Node) -> str:
    place = place_of(node)
    return f"{operator_name(node)} at {place}" if place else operator_name(node)


def _constants(node: fx.Node) -> str:
    """Return the arguments that are numbers and texts, and where the others stand."""
    return str(fx.map_arg((node.args, node.kwargs), lambda _: ""))


def _same_values(first: fx.GraphModule, one: fx.Node, second: fx.GraphModule, other: fx.Node) -> bool:
    value, compared = attribute(first, str(one.target)), attribute(second, str(other.target))
    if isinstance(value, Tensor) and isinstance(compared, Tensor):
        return torch.equal(value, compared)
    return type(value) is type(compared)
