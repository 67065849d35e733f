"""Blocks of a quantized graph, which are reconstructed one after the other.

A block ends after an addition or a pooling and the operators that the next quantizer absorbs. Class names are
not used. A block may have several inputs and outputs, so branches need no special handling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, fx

from qgait_ptq.graph.operators import ADDITIONS, MAX_POOLS, MAXIMA, WEIGHTED, is_operator
from qgait_ptq.graph.stepping import run_node

ENDS = ADDITIONS | MAX_POOLS | MAXIMA
LARGEST_BLOCK = 6  # layers; longer chains without additions or pooling are split


class Granularity(StrEnum):
    """Unit of reconstruction."""

    LAYER = "layer"
    BLOCK = "block"


@dataclass(frozen=True)
class Block:
    """A sequence of consecutive nodes of a graph.

    Attributes:
        nodes: nodes in order, without ``get_attr`` nodes.
        inputs: nodes before the block that it reads.
        outputs: nodes of the block that later nodes read.
        layers: weighted layers of the block.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    layers: tuple[fx.Node, ...]

    @property
    def start(self) -> str:
        """Name of the first node."""
        return self.nodes[0].name

    def run(self, graph_module: fx.GraphModule, values: Mapping[fx.Node, Any]) -> list[Tensor]:
        """Compute the outputs from the inputs, with gradients.

        Args:
            graph_module: module of the graph that the block belongs to.
            values: values of `inputs`.
        """
        interpreter = fx.Interpreter(graph_module, garbage_collect_values=False)
        interpreter.env = dict(values)
        for node in self.nodes:
            interpreter.env[node] = run_node(interpreter, node)
        return [interpreter.env[node] for node in self.outputs]


def find_blocks(graph_module: fx.GraphModule, granularity: Granularity = Granularity.BLOCK) -> list[Block]:
    """Divide a graph with quantizers into blocks, in order. Together they cover the graph.

    Args:
        graph_module: graph with inserted quantizers.
        granularity: blocks, or one layer at a time as in AdaRound.
    """
    stretches: list[list[fx.Node]] = [[]]
    ended = False
    for node in graph_module.graph.nodes:
        if node.op in ("get_attr", "placeholder", "output"):
            continue
        if ended and _starts_something(node):
            stretches.append([])
            ended = False
        stretches[-1].append(node)
        layers = sum(is_operator(n, WEIGHTED) for n in stretches[-1])
        if granularity is Granularity.LAYER:
            ended = ended or layers > 0
        else:
            ended = ended or (layers > 0 and is_operator(node, ENDS)) or layers >= LARGEST_BLOCK
    if len(stretches) > 1 and not any(is_operator(n, WEIGHTED) for n in stretches[-1]):
        last = stretches.pop()
        stretches[-1].extend(last)
    return [block_of(stretch) for stretch in stretches]


def _starts_something(node: fx.Node) -> bool:
    """Return whether a node can start a block: a layer, its parameters, an addition or a pooling."""
    if is_operator(node, WEIGHTED | ENDS):
        return True
    return node.op == "call_module" and node.all_input_nodes[0].op == "get_attr"


def block_of(stretch: Iterable[fx.Node]) -> Block:
    """Return some nodes of a graph, in its order, as a block."""
    nodes = list(stretch)
    inside = set(nodes)
    inputs: dict[fx.Node, None] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            if source not in inside and source.op != "get_attr":
                inputs[source] = None
    outputs = tuple(node for node in nodes if any(user not in inside for user in node.users))
    layers = tuple(node for node in nodes if is_operator(node, WEIGHTED))
    return Block(tuple(nodes), tuple(inputs), outputs, layers)
