"""Parameters and multiply-accumulates of a whole network, and their share in float.

Everything is counted: attention, recurrent layers, embeddings and other parameters outside the quantized
layers count as well.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import fx

from qgait_ptq.graph.annotation import annotation_of
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.macs import count_macs, has_uncounted_products
from qgait_ptq.graph.operators import WEIGHTED, is_operator, operator_name
from qgait_ptq.system.invariants import present


@dataclass(frozen=True)
class FloatPart:
    """All operators of one kind that compute in float.

    Attributes:
        operator: name such as ``lstm``.
        parameters: number of parameters in float that only they read.
        macs: multiply-accumulates on the recorded example.
        weight_only: number of parameters that are stored as integers.
    """

    operator: str
    parameters: int
    macs: int
    weight_only: int = 0

    @property
    def all_parameters(self) -> int:
        """Number of parameters, stored in float or as integers."""
        return self.parameters + self.weight_only


@dataclass(frozen=True)
class Totals:
    """Size and work of a network.

    Attributes:
        parameters: number of all stored numbers that the network computes with.
        quantized_parameters: those in layers with integer weights, with their biases, and the weight-only
            ones.
        weight_only_parameters: those that are stored as integers for operators in float.
        macs: multiply-accumulates on the recorded example.
        integer_macs: those that the runtime computes on integers.
        float_parts: operators that stay in float, the largest first.
        uncounted: operators whose products are not counted.
    """

    parameters: int
    quantized_parameters: int
    weight_only_parameters: int
    macs: int
    integer_macs: int
    float_parts: tuple[FloatPart, ...]
    uncounted: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return one line for each part in float, with its share."""
        parts = [
            f"{part.operator} in float: {part.all_parameters / 1e6:.2f} M parameters "
            f"({self._share(part.all_parameters)} %{self._stored(part)}), {part.macs / 1e9:.2f} GMAC "
            f"({100 * part.macs / max(1, self.macs):.1f} %)"
            for part in self.float_parts
        ]
        return [*parts, *self.notes()]

    def notes(self) -> list[str]:
        """Return a line that names the operators whose products are not counted; none if there are none."""
        if not self.uncounted:
            return []
        return [f"multiply-accumulates leave out the products in {', '.join(self.uncounted)}"]

    def describe(self) -> str:
        """Return parameters and multiply-accumulates, and their shares on integers, as one line."""
        quantized = 100 * self.quantized_parameters / max(1, self.parameters)
        only = self.weight_only_parameters
        weight_only = f" ({self._share(only)} % weight-only)" if only else ""
        integer = 100 * self.integer_macs / max(1, self.macs)
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {quantized:.2f} % of them quantized{weight_only}; "
            f"{self.macs / 1e9:.2f} GMAC, {integer:.2f} % of them on integers"
        )

    def _share(self, parameters: int) -> str:
        return f"{100 * parameters / max(1, self.parameters):.1f}"

    def _stored(self, part: FloatPart) -> str:
        if not part.weight_only:
            return ""
        return f", {part.weight_only / 1e6:.2f} M of them stored as integers"


def count_totals(graph_module: fx.GraphModule) -> Totals:
    """Count a simplified and annotated graph whose shapes are recorded.

    Parameters that several operators read count once, for the first.

    Args:
        graph_module: the float graph.
    """
    in_float, weight_only, macs = Counter[str](), Counter[str](), Counter[str]()
    quantized = integer = 0
    seen: set[int] = set()
    stored = _weight_only_addresses(graph_module)
    for node in graph_module.graph.nodes:
        read = {a: size for a, size in _parameters(graph_module, node).items() if a not in seen}
        seen |= read.keys()
        own = sum(read.values())
        annotation, name = annotation_of(node), operator_name(node)
        if is_operator(node, WEIGHTED) and annotation.weight is not None:
            quantized += own
        elif own:
            as_integers = sum(size for address, size in read.items() if address in stored)
            weight_only[name] += as_integers
            in_float[name] += own - as_integers
        count = count_macs(node)
        if annotation.integer:
            integer += count
        elif count:
            macs[name] += count
    parts = [FloatPart(name, in_float[name], macs[name], weight_only[name]) for name in in_float | macs]
    only = weight_only.total()
    return Totals(
        quantized + only + in_float.total(),
        quantized + only,
        only,
        integer + macs.total(),
        integer,
        tuple(sorted(parts, key=lambda part: (-part.all_parameters, -part.macs, part.operator))),
        tuple(sorted({operator_name(n) for n in graph_module.graph.nodes if has_uncounted_products(n)})),
    )


def _weight_only_addresses(graph_module: fx.GraphModule) -> set[int]:
    """Return the addresses of the tensors that are stored as integers for operators in float."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    names = {spec.parameter for node in nodes.values() for spec in annotation_of(node).weight_only}
    return {present(tensor_of(graph_module, nodes[name])).data_ptr() for name in names}


def _parameters(graph_module: fx.GraphModule, node: fx.Node) -> dict[int, int]:
    """Return the size of each stored tensor that a node reads, by its memory address."""
    tensors = [tensor_of(graph_module, read) for read in node.all_input_nodes]
    return {t.data_ptr(): t.numel() for t in tensors if t is not None and t.is_floating_point()}
