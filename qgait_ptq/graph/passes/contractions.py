"""Sums of products over named axes as einsums of two tensors.

Later passes turn einsums with a stored tensor into layers. Multiply-accumulates are counted for two tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

from torch import fx

from qgait_ptq.graph.equations import DOTS, explicit_equation
from qgait_ptq.graph.operators import EINSUMS, aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_integer, observed_shape
from qgait_ptq.graph.views import argument

CONTRACTIONS = frozenset({aten.tensordot.default, aten.inner.default})


def contractions_to_einsum(graph_module: fx.GraphModule) -> None:
    """Turn `torch.tensordot` and `torch.inner` into einsums."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, CONTRACTIONS):
            continue
        left, right = argument(node, "self"), argument(node, "other")
        shapes = observed_shape(left), observed_shape(right)
        if not shapes[0] or not shapes[1]:  # a scalar is multiplied
            continue
        if node.target is aten.inner.default:
            axes = [len(shapes[0]) - 1], [len(shapes[1]) - 1]
        else:
            axes = (
                _axes(argument(node, "dims_self"), len(shapes[0])),
                _axes(argument(node, "dims_other"), len(shapes[1])),
            )
        if len(shapes[0]) + len(shapes[1]) > len(ascii_letters):
            continue
        with graph.inserting_before(node):
            equation = _contraction(len(shapes[0]), len(shapes[1]), *axes)
            einsum = graph.call_function(aten.einsum.default, (equation, [left, right]))
        node.replace_all_uses_with(einsum)


def _axes(axes: Sequence[object], rank: int) -> list[int]:
    return [observed_integer(axis) % rank for axis in axes]


def _contraction(left: int, right: int, left_axes: Sequence[int], right_axes: Sequence[int]) -> str:
    """Return the equation that sums over pairs of axes of two tensors.

    Args:
        left: number of axes of the first tensor.
        right: number of axes of the second tensor.
        left_axes: axes of the first tensor that are summed.
        right_axes: axes of the second tensor that are summed, in the same order.

    Example:
        >>> _contraction(3, 2, [2], [0])
        'abc,cd->abd'
    """
    letters = iter(ascii_letters)
    first = [next(letters) for _ in range(left)]
    paired = dict(zip(right_axes, left_axes, strict=True))
    second = [first[paired[axis]] if axis in paired else next(letters) for axis in range(right)]
    kept = [letter for axis, letter in enumerate(first) if axis not in left_axes]
    kept += [letter for axis, letter in enumerate(second) if axis not in paired]
    return f"{''.join(first)},{''.join(second)}->{''.join(kept)}"


def split_einsums(graph_module: fx.GraphModule) -> None:
    """Turn an einsum of three or more tensors into einsums of two, in the order in which torch computes them.

    Equations without ``->`` get their result.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, EINSUMS):
            continue
        inputs, result = explicit_equation(str(argument(node, "equation")))
        tensors = argument(node, "tensors")
        if len(tensors) < 3:
            node.args, node.kwargs = (f"{','.join(inputs)}->{result}", tensors), {}
            continue
        pending = list(zip(inputs, tensors, strict=True))
        path = list(argument(node, "path") or ())
        with graph.inserting_before(node):
            while len(pending) > 1:
                pair = sorted((path.pop(0), path.pop(0))) if path else [0, 1]
                (right, second), (left, first) = pending.pop(pair[1]), pending.pop(pair[0])
                letters = _kept_letters(left, right, [*(one for one, _ in pending), result])
                combined = result if not pending else letters
                einsum = graph.call_function(
                    aten.einsum.default, (f"{left},{right}->{combined}", [first, second])
                )
                # Along a path, a result is the last tensor; otherwise it is combined with the next one.
                pending.insert(len(pending) if path else 0, (combined, einsum))
        node.replace_all_uses_with(pending[0][1])


def _kept_letters(left: str, right: str, others: Sequence[str]) -> str:
    """Return the axes of two tensors that other tensors or the result have, too."""
    dots = DOTS if DOTS in left + right else ""
    letters = dict.fromkeys((left + right).replace(DOTS, ""))
    return dots + "".join(letter for letter in letters if any(letter in other for other in others))


CONTRACTIONS_TO_EINSUM = GraphPass("contractions-to-einsum", contractions_to_einsum)
SPLIT_EINSUMS = GraphPass("split-einsums", split_einsums)
