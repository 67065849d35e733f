"""Stored weights of operators that compute in float, such as LSTM, embedding and matrix products.

The table says for each operator which arguments are weights, and which axis of a weight has a scale for each
of its slices: the axis of the operator's output channels, or the rows of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import fx, nn

from qgait_ptq.graph.attributes import origin, tensor_of
from qgait_ptq.graph.equations import explicit_equation
from qgait_ptq.graph.operators import (
    ATTENTIONS,
    BILINEAR,
    BROADCASTS,
    EINSUMS,
    EMBEDDINGS,
    INSERTIONS,
    MATRIX_PRODUCTS,
    RECURRENT,
    RECURRENT_CELLS,
    TRANSPOSED_CONVOLUTIONS,
    is_operator,
)
from qgait_ptq.graph.shapes import observed_integer, observed_shape
from qgait_ptq.graph.views import ModuleCall, WeightedLayer, argument, first_argument, operands, source
from qgait_ptq.system.invariants import of_type

Weights = Iterator[tuple[object, int]]  # argument of an operator, and its axis with a scale for each slice


@dataclass(frozen=True)
class StoredWeight:
    """A stored weight of an operator.

    Attributes:
        parameter: node of the parameter.
        reader: node that reads the parameter: the operator, or a node before it that expands the weight.
        axis: axis with a scale for each slice.
    """

    parameter: fx.Node
    reader: fx.Node
    axis: int


def stored_weights(graph_module: fx.GraphModule, node: fx.Node) -> list[StoredWeight]:
    """Return the stored weights of a node; none for operators that are not in the table.

    Vectors, such as biases, and buffers, such as a fixed graph of joints, are left out.
    """
    found = []
    for weight, axis in _weight_arguments(node):
        parameter, reader = _before_expansion(weight, node, axis)
        value = tensor_of(graph_module, parameter)
        if isinstance(value, nn.Parameter) and value.is_floating_point() and value.ndim > 1:
            found.append(StoredWeight(of_type(parameter, fx.Node), reader, axis % value.ndim))
    return found


def layer_name(node: fx.Node) -> str:
    """Return the module path of a layer with weights in the user's network: the owner of its weight."""
    layer = WeightedLayer.of(node)
    if layer is not None:
        weight: object = layer.weight
        while isinstance(weight, fx.Node) and weight.op != "get_attr":
            weight = first_argument(weight)
        return owner_name(weight) if isinstance(weight, fx.Node) else node.name  # a weight that is computed
    for weight, _ in _weight_arguments(node):
        while is_operator(weight, BROADCASTS | INSERTIONS) or ModuleCall.of(weight) is not None:
            weight = first_argument(weight)
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            return owner_name(weight)
    return node.name


def nearest_layer(node: fx.Node) -> fx.Node | None:
    """Return the layer with weights that is nearest before a node, the node itself included; None without."""
    pending, seen = [node], {node}
    while pending:
        current = pending.pop(0)
        if WeightedLayer.of(current) is not None:
            return current
        before = [source for source in current.all_input_nodes if source not in seen]
        seen.update(before)
        pending.extend(before)
    return None


def owner_name(parameter: fx.Node) -> str:
    """Return the path of the module that owns a parameter; the parameter's name for the network itself."""
    owner, _, name = origin(parameter).rpartition(".")
    return owner or name


def _weight_arguments(node: fx.Node) -> Weights:
    find = next((find for operators, find in WEIGHTS if is_operator(node, operators)), None)
    return iter(()) if find is None else find(node)


def _before_expansion(weight: object, reader: fx.Node, axis: int) -> tuple[object, fx.Node]:
    """Return the node before expansions of a weight, and the node that reads it.

    An axis that is inserted before the axis with scales leaves that axis where it is, counted from the end.
    """
    while is_operator(weight, BROADCASTS) or _inserts_before(weight, axis):
        reader = of_type(weight, fx.Node)
        weight = source(reader)
    return weight, reader


def _inserts_before(weight: object, axis: int) -> bool:
    if not is_operator(weight, INSERTIONS):
        return False
    node = of_type(weight, fx.Node)
    dimensions = len(observed_shape(node) or ())
    return axis < 0 and observed_integer(argument(node, "dim")) % max(dimensions, 1) < dimensions + axis


def _of_recurrent(node: fx.Node) -> Weights:
    """Each row of a matrix belongs to one unit of one gate."""
    for parameter in argument(node, "params"):
        yield parameter, 0


def _of_cell(node: fx.Node) -> Weights:
    yield from ((argument(node, name), 0) for name in ("w_ih", "w_hh"))


def _of_rows(node: fx.Node) -> Weights:
    yield argument(node, "weight"), 0


def _of_transposed(node: fx.Node) -> Weights:
    """The weight is ``[in, out / groups, *kernel]``."""
    yield argument(node, "weight"), 1


def _of_product(node: fx.Node) -> Weights:
    """The output has the rows of the left matrix and the columns of the right one."""
    left, right = operands(node)
    yield from ((left, -2), (right, -1))


def _of_attention(node: fx.Node) -> Weights:
    """Rows of learned queries, keys and values."""
    yield from ((argument(node, name), -2) for name in ("query", "key", "value"))


def _of_einsum(node: fx.Node) -> Weights:
    """Yield the operands with an axis that the output has, if possible one that no other operand has."""
    letters, result = explicit_equation(str(argument(node, "equation")))
    for position, (own, tensor) in enumerate(zip(letters, argument(node, "tensors"), strict=True)):
        if "." in own:
            continue
        others = "".join(letters[:position] + letters[position + 1 :])
        kept = [axis for axis, letter in enumerate(own) if letter in result]
        new = [axis for axis in kept if own[axis] not in others]
        yield tensor, (new or kept or [0])[-1] - len(own)


WEIGHTS: tuple[tuple[frozenset[object], Callable[[fx.Node], Weights]], ...] = (
    (RECURRENT, _of_recurrent),
    (RECURRENT_CELLS, _of_cell),
    (EMBEDDINGS | BILINEAR, _of_rows),
    (TRANSPOSED_CONVOLUTIONS, _of_transposed),
    (MATRIX_PRODUCTS, _of_product),
    (ATTENTIONS, _of_attention),
    (EINSUMS, _of_einsum),
)
