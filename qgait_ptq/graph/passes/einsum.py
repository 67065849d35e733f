"""Einsums that multiply with a stored tensor, as matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_letters

from torch import fx

from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.equations import DOTS
from qgait_ptq.graph.operators import EINSUMS, aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import argument


def einsum_to_matmul(graph_module: fx.GraphModule) -> None:
    """Turn the products of ``einsum`` with a stored tensor into matrix products.

    Two forms are supported, with letters in any order: ``…c,cd->…d``, and ``npc,pcd->npd`` with one letter
    that all three tensors share.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, EINSUMS) or len(argument(node, "tensors")) != 2:
            continue
        features, weight = argument(node, "tensors")
        equation = argument(node, "equation").replace(" ", "")
        if tensor_of(graph_module, features) is not None:  # the stored tensor is named first
            features, weight, equation = weight, features, _with_the_second_first(equation)
        equation = _without_dots(equation, observed_shape(features))
        product = None if equation is None else _parse_product(equation)
        if product is None or tensor_of(graph_module, weight) is None:
            continue
        if not product.fits(observed_shape(features), observed_shape(weight)):
            continue
        with graph.inserting_before(node):
            moved = graph.call_function(aten.permute.default, (features, product.features))
            matrix = graph.call_function(aten.permute.default, (weight, product.weight))
            multiplied = graph.call_function(aten.matmul.default, (moved, matrix))
            back = graph.call_function(aten.permute.default, (multiplied, product.result))
        back.meta.update(node.meta)  # another einsum can read it
        node.replace_all_uses_with(back)


@dataclass(frozen=True)
class _Product:
    """Orders of axes that turn an einsum into a matrix product."""

    features: list[int]
    weight: list[int]
    result: list[int]

    def fits(self, features: tuple[int, ...] | None, weight: tuple[int, ...] | None) -> bool:
        """Return whether the summed axes have one size; an einsum also broadcasts an axis of size 1."""
        if features is None or weight is None:
            return False
        return features[self.features[-1]] == weight[self.weight[-2]]


def _with_the_second_first(equation: str) -> str:
    """Return the equation of the same product with the tensors in the other order."""
    inputs, arrow, result = equation.partition("->")
    left, _, right = inputs.partition(",")
    return f"{right},{left}{arrow}{result}"


def _without_dots(equation: str, features: tuple[int, ...] | None) -> str | None:
    """Return an equation with letters for the dots of the features; None if others have dots, too."""
    inputs, arrow, result = equation.partition("->")
    left, _, right = inputs.partition(",")
    if "." not in equation:
        return equation
    if features is None or "." in right or DOTS not in left or (arrow and DOTS not in result):
        return None
    unused = [letter for letter in ascii_letters if letter not in equation]
    letters = "".join(unused[: len(features) - len(left.replace(DOTS, ""))])
    return equation.replace(DOTS, letters)


def _parse_product(equation: str) -> _Product | None:
    """Return the orders for an equation; None if its form is not supported."""
    inputs, _, result = equation.partition("->")
    left, _, right = inputs.partition(",")
    if len(set(left)) < len(left) or len(set(right)) < len(right):  # a diagonal
        return None
    shared = [letter for letter in right if letter in left and letter in result]
    summed = [letter for letter in right if letter in left and letter not in result]
    new = [letter for letter in right if letter not in left]
    kept = [letter for letter in left if letter not in right]
    known = len(shared) == 0 or (len(shared) == 1 and len(kept) == 1)
    if not known or len(summed) != 1 or len(new) != 1 or sorted(result) != sorted([*shared, *kept, *new]):
        return None
    product = [*shared, *kept, *new]
    return _Product(
        [left.index(letter) for letter in (*shared, *kept, *summed)],
        [right.index(letter) for letter in (*shared, *summed, *new)],
        [product.index(letter) for letter in result],
    )


EINSUM_TO_MATMUL = GraphPass("einsum-to-matmul", einsum_to_matmul)
