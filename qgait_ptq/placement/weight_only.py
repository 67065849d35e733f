"""Weight-only quantization: which stored weights of operators in float become integers in the file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor, float32, fx

from qgait_ptq.graph.annotation import OwnSpec, WeightOnlySpec
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.operators import operator_name
from qgait_ptq.graph.stored_weights import StoredWeight, stored_weights
from qgait_ptq.graph.views import WeightedLayer
from qgait_ptq.quantizer.grid import IntegerGrid
from qgait_ptq.system.invariants import present

FLOAT_BYTES = 4  # of a weight, and of a scale
STORAGE_BYTES = 500  # names and nodes of a weight in the file
NOT_ON_TARGET = "its weights stay in float: the target stores integers only for layers that compute on them"


@dataclass(frozen=True)
class WeightOnlyPlan:
    """Weights of one operator.

    Attributes:
        specs: weights that are stored as integers.
        reason: what is stored as integers, and why the rest is not.
    """

    specs: tuple[WeightOnlySpec, ...]
    reason: str


def weight_only_layers(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Return the operators in float that have stored weights, in graph order."""
    return [node for node in graph_module.graph.nodes if stored_weights(graph_module, node)]


def is_worth_storing(shape: tuple[int, ...], axis: int) -> bool:
    """Return whether 8-bit integers, with their scales and nodes, need at most half the bytes of float.

    Example:
        >>> is_worth_storing((256, 8), 0), is_worth_storing((64, 8), 0)
        (True, False)
    """
    return 2 * (prod(shape) + FLOAT_BYTES * shape[axis] + STORAGE_BYTES) <= FLOAT_BYTES * prod(shape)


def plan_weight_only(
    graph_module: fx.GraphModule,
    chosen: Collection[fx.Node],
    integer_layers: Collection[fx.Node],
    bits_of: Callable[[fx.Node], int],
    observer: str,
) -> dict[fx.Node, WeightOnlyPlan]:
    """Plan the weights of operators that compute in float.

    Args:
        graph_module: simplified float graph.
        chosen: operators with stored weights that the configuration and the target admit.
        integer_layers: layers whose weight is quantized because they compute on integers.
        bits_of: function that returns the width of an operator's weights.
        observer: name of the observer of weights.
    """
    weights = {node: stored_weights(graph_module, node) for node in chosen}
    as_integers = {(weight.reader, weight.parameter) for stored in weights.values() for weight in stored} | {
        (layer, WeightedLayer(layer).weight) for layer in integer_layers
    }
    float_readers = _float_readers(graph_module, as_integers)
    quantizers: dict[tuple[fx.Node, fx.Node], OwnSpec] = {}  # operators can share a read
    plans = {}
    for node, stored in weights.items():
        reasons = {w: _why_float(graph_module, w, float_readers) for w in stored}
        grid = IntegerGrid(bits_of(node), signed=True, symmetric=True)
        specs = []
        for weight in (w for w in stored if not reasons[w]):
            own = OwnSpec(grid, observer, weight.axis)
            shared = quantizers.setdefault((weight.reader, weight.parameter), own)
            specs.append(WeightOnlySpec(weight.parameter.name, weight.reader.name, shared))
        plans[node] = WeightOnlyPlan(tuple(specs), _describe(graph_module, reasons, grid.bits))
    return plans


def _float_readers(
    graph_module: fx.GraphModule, as_integers: Collection[tuple[fx.Node, fx.Node]]
) -> dict[int, str]:
    """Return a node that reads a stored tensor in float, by the tensor's address."""
    readers = {}
    for node in graph_module.graph.nodes:
        value = tensor_of(graph_module, node)
        others = [user for user in node.users if (user, node) not in as_integers]
        if value is not None and others:
            readers[value.data_ptr()] = operator_name(others[0])
    return readers


def _why_float(graph_module: fx.GraphModule, weight: StoredWeight, float_readers: Mapping[int, str]) -> str:
    """Return why a weight stays in float; empty if it is stored as integers."""
    value = _value(graph_module, weight)
    if value.dtype is not float32:
        return f"they are {str(value.dtype).removeprefix('torch.')}"
    if value.data_ptr() in float_readers:
        return f"{float_readers[value.data_ptr()]} reads them in float, too"
    return "" if is_worth_storing(tuple(value.shape), weight.axis) else "integers would not halve their size"


def _describe(graph_module: fx.GraphModule, reasons: Mapping[StoredWeight, str], bits: int) -> str:
    """Return how many weights are stored as integers, and how many are not, with the reasons."""
    counts: dict[str, int] = {}
    for weight, reason in reasons.items():
        counts[reason] = counts.get(reason, 0) + _value(graph_module, weight).numel()
    parts = []
    if "" in counts:
        parts.append(
            f"weight-only: {counts.pop(''):,} weights are stored as integers of {bits} bits; "
            "the operator computes in float"
        )
    parts += [f"{count:,} weights stay in float: {reason}" for reason, count in counts.items()]
    return "; ".join(parts)


def _value(graph_module: fx.GraphModule, weight: StoredWeight) -> Tensor:
    return present(tensor_of(graph_module, weight.parameter))
