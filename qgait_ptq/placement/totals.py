"""Parameters and multiply-accumulates of a whole network, and their share in float.

Everything is counted: attention, recurrent layers, embeddings and other parameters outside the quantized
layers count as well.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import fx

from qgait_ptq.graph.annotation import annotation_of
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.macs import count_macs
from qgait_ptq.graph.operators import WEIGHTED, is_operator, operator_name


@dataclass(frozen=True)
class FloatPart:
    """All operators of one kind that compute in float.

    Attributes:
        operator: name such as ``lstm``.
        parameters: number of parameters that only they read.
        macs: multiply-accumulates on the recorded example.
    """

    operator: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Totals:
    """Size and work of a network.

    Attributes:
        parameters: number of all stored numbers that the network computes with.
        quantized_parameters: those in layers with integer weights, with their biases.
        macs: multiply-accumulates on the recorded example.
        integer_macs: those that the runtime computes on integers.
        float_parts: operators that stay in float, the largest first.
    """

    parameters: int
    quantized_parameters: int
    macs: int
    integer_macs: int
    float_parts: tuple[FloatPart, ...]

    def lines(self) -> list[str]:
        """Return one line for each part in float, with its share."""
        return [
            f"{part.operator} in float: {part.parameters / 1e6:.2f} M parameters "
            f"({100 * part.parameters / max(1, self.parameters):.1f} %), {part.macs / 1e9:.2f} GMAC "
            f"({100 * part.macs / max(1, self.macs):.1f} %)"
            for part in self.float_parts
        ]

    def describe(self) -> str:
        """Return parameters and multiply-accumulates, and their shares on integers, as one line."""
        quantized = 100 * self.quantized_parameters / max(1, self.parameters)
        integer = 100 * self.integer_macs / max(1, self.macs)
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {quantized:.2f} % of them quantized; "
            f"{self.macs / 1e9:.2f} GMAC, {integer:.2f} % of them on integers"
        )


def count_totals(graph_module: fx.GraphModule) -> Totals:
    """Count a simplified and annotated graph whose shapes are recorded.

    Parameters that several operators read count once, for the first.

    Args:
        graph_module: the float graph.
    """
    parameters: dict[str, int] = defaultdict(int)
    macs: dict[str, int] = defaultdict(int)
    quantized = integer = 0
    seen: set[int] = set()
    for node in graph_module.graph.nodes:
        read = _parameters(graph_module, node)
        own = sum(count for address, count in read.items() if address not in seen)
        seen |= read.keys()
        annotation = annotation_of(node)
        if is_operator(node, WEIGHTED) and annotation.weight is not None:
            quantized += own
        elif own:
            parameters[operator_name(node)] += own
        count = count_macs(node)
        if annotation.integer:
            integer += count
        elif count:
            macs[operator_name(node)] += count
    parts = [FloatPart(name, parameters[name], macs[name]) for name in {**parameters, **macs}]
    return Totals(
        quantized + sum(parameters.values()),
        quantized,
        integer + sum(macs.values()),
        integer,
        tuple(sorted(parts, key=lambda part: (-part.parameters, -part.macs, part.operator))),
    )


def _parameters(graph_module: fx.GraphModule, node: fx.Node) -> dict[int, int]:
    """Return the size of each stored tensor that a node reads, by its memory address."""
    tensors = [tensor_of(graph_module, read) for read in node.all_input_nodes]
    return {t.data_ptr(): t.numel() for t in tensors if t is not None and t.is_floating_point()}
