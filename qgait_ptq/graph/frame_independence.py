"""Proof that a network treats each frame alone up to a maximum over frames.

A sequence can then be streamed: chunks go through the network alone, and their maxima are combined. The
proof follows the frames through the graph, operator by operator, and an operator without a rule ends it. It
holds for every frame count, although only two are run to see the shapes.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from qgait_ptq.graph.frame_calls import COUNTS, MEETS, UNKNOWN, FrameAxis, FrameCall
from qgait_ptq.graph.frame_rules import EXPANSIONS, REGROUPINGS, find_rule, without_axis
from qgait_ptq.graph.operators import MAXIMA, aten, is_operator, operator_name
from qgait_ptq.graph.recorder import run_recorded
from qgait_ptq.graph.stored_weights import layer_name, nearest_layer
from qgait_ptq.graph.views import argument, operands, source

PROOF_FRAMES = (7, 17)  # of the examples
SIZES = frozenset({aten.sym_size.int})
PRODUCTS, QUOTIENTS = frozenset({operator.mul}), frozenset({operator.floordiv})


@dataclass(frozen=True)
class FrameIndependence:
    """Return whether a network treats each frame alone up to a maximum over frames.

    Attributes:
        holds: whether it is proven.
        reason: the operator that ends the proof, and why; empty where it holds.
        pooled: names of the nodes that maxima over frames determine.
    """

    holds: bool
    reason: str = ""
    pooled: frozenset[str] = frozenset()


def prove_frame_independence(graph_module: fx.GraphModule, examples: Sequence[Tensor]) -> FrameIndependence:
    """Prove that a network treats each frame alone up to a maximum over frames.

    Args:
        graph_module: a captured network, also with quantizers.
        examples: two sequences ``[1, s, ...]`` of `PROOF_FRAMES`, on the device of the network.
    """
    proof = _Proof([example.shape[1] for example in examples])
    try:
        with torch.inference_mode():
            for example in examples:
                run_recorded(graph_module, example, proof.record)
    except Exception:  # whatever an operator raises at a size that it does not take
        counts = " or ".join(map(str, proof.counts))
        return FrameIndependence(False, f"the network does not run with {counts} frames")
    for node in graph_module.graph.nodes:
        problem = proof.follow(node)
        if problem is not None:
            return FrameIndependence(False, f"{operator_name(node)}{_place(node)} {problem}")
    return FrameIndependence(True, pooled=frozenset(node.name for node in proof.pooled))


@dataclass
class _Proof:
    """Facts about the nodes of a graph.

    A node in none of `framewise`, `pooled` and `sizes` is the same for every sequence.

    Attributes:
        counts: the two frame counts.
        shapes: shape of each node's tensor at the two frame counts.
        numbers: value of each node that is an integer, at the two frame counts.
        framewise: tensors that hold for each frame what this frame alone determines.
        pooled: values that maxima over frames determine.
        sizes: numbers that the frame count determines, as a multiple of it; None for other functions of it.
    """

    counts: list[int]
    shapes: dict[fx.Node, list[tuple[int, ...]]] = field(default_factory=dict)
    numbers: dict[fx.Node, list[int | None]] = field(default_factory=dict)
    framewise: dict[fx.Node, FrameAxis] = field(default_factory=dict)
    pooled: set[fx.Node] = field(default_factory=set)
    sizes: dict[fx.Node, int | None] = field(default_factory=dict)

    def record(self, node: fx.Node, value: object) -> None:
        """Keep the shape or the number that a node gives at one frame count."""
        if isinstance(value, Tensor):
            self.shapes.setdefault(node, []).append(tuple(value.shape))
        elif isinstance(value, int):
            self.numbers.setdefault(node, []).append(value)

    def follow(self, node: fx.Node) -> str | None:
        """Add the facts about a node; return what ends the proof, if something does."""
        read = node.all_input_nodes
        given = {source: self.framewise[source] for source in read if source in self.framewise}
        sizes = [self.sizes[source] for source in read if source in self.sizes]
        if node.op == "placeholder":
            return None if self._find_frames(node) else UNKNOWN
        if node.op == "output":
            return "has no maximum over frames before it" if given else None
        if is_operator(node, SIZES):
            frames = given.get(source(node))
            if frames is not None and frames.is_among(argument(node, "dim")):
                self.sizes[node] = frames.each
            return None
        if any(source in self.pooled for source in read):
            self.pooled.add(node)
            return MEETS if given else COUNTS if sizes else None
        if node not in self.shapes:  # a number, or several tensors
            if sizes:
                self.sizes[node] = self._multiple(node)
            return UNKNOWN if given else None
        if sizes and (None in sizes or not is_operator(node, REGROUPINGS | EXPANSIONS)):
            return COUNTS
        return self._follow_frames(node, given) if given or sizes else None

    def _follow_frames(self, node: fx.Node, given: dict[fx.Node, FrameAxis]) -> str | None:
        """Add the facts about a call on tensors with frames, or one that repeats a tensor for each frame."""
        if is_operator(node, MAXIMA) and given[source(node)].is_among(argument(node, "dim")):
            self.pooled.add(node)
            return None
        rule = find_rule(node)
        if rule is None:
            return UNKNOWN
        result = self._find_frames(node)
        if result is None:
            return without_axis(node)
        return rule(FrameCall(node, given, result, self.shapes)) if given else None

    def _find_frames(self, node: fx.Node) -> FrameAxis | None:
        """Return the frame axis of a node's tensor, and keep it; None where there is none, or several."""
        first, second = self.shapes[node]
        free = [axis for axis, sizes in enumerate(zip(first, second, strict=False)) if len(set(sizes)) > 1]
        if len(free) != 1 or len(first) != len(second):
            return None
        (axis,) = free
        each, rest = divmod(first[axis], self.counts[0])
        if rest or second[axis] != each * self.counts[1]:
            return None
        self.framewise[node] = FrameAxis(axis, each, first)
        return self.framewise[node]

    def _multiple(self, node: fx.Node) -> int | None:
        """Return a number as a multiple of the frame count; None where it may be another function of it."""
        if not is_operator(node, PRODUCTS | QUOTIENTS):
            return None
        first, second = operands(node)
        size, other = (first, second) if first in self.sizes else (second, first)
        multiple = self.sizes[size]
        if multiple is None or other in self.sizes:
            return None
        constant = self.numbers.get(other, [None])[0] if isinstance(other, fx.Node) else other
        if not isinstance(constant, int):
            return None
        if is_operator(node, PRODUCTS):
            return multiple * constant
        divides = size is first and constant > 0 and multiple % constant == 0
        return multiple // constant if divides else None


def _place(node: fx.Node) -> str:
    """Name a layer, or the nearest one before another operator."""
    layer = nearest_layer(node)
    if layer is None:
        return " on the input"
    return f" {layer_name(layer)}" if layer is node else f" behind {layer_name(layer)}"
