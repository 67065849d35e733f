"""Conversion of in-place operators to a form without side effects.

Passes move, merge and remove nodes of a graph. Therefore no node may change the values of another node, as
``mask[:, :frames] = 1`` does.
"""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.export import ExportedProgram

from qgait_ptq.graph.attributes import remove_unused
from qgait_ptq.graph.operators import RESHAPES, aten, is_operator
from qgait_ptq.graph.views import argument, first_argument

NORMALISATIONS = frozenset(
    {
        aten._native_batch_norm_legit_no_training.default,
        aten._native_batch_norm_legit_functional.default,
        aten._native_batch_norm_legit.no_stats,
    }
)
TENSORS = ("input", "weight", "bias", "running_mean", "running_var")  # arguments of a batch norm
VIEWS = frozenset({aten.view.default})


def without_side_effects(program: ExportedProgram) -> ExportedProgram:
    """Return the program itself if no operator changes the input of another one, else its functional form."""
    if any(_writes_for_others(node) for node in program.graph.nodes):
        return program.run_decompositions({})
    return program


def restore_usual_forms(graph_module: fx.GraphModule) -> None:
    """Replace operators of the functional form by those that a network has.

    Batch norms become the operator that later stages know. Views become reshapes, because a view refuses the
    strides of some inputs that the network itself takes.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if is_operator(node, VIEWS):
            node.target = aten.reshape.default
        if not is_operator(node, NORMALISATIONS):
            continue
        tensors = [_argument(node, name) for name in TENSORS]
        training = bool(_argument(node, "training"))
        momentum, epsilon = argument(node, "momentum"), argument(node, "eps")
        with graph.inserting_before(node):
            plain = graph.call_function(
                aten.batch_norm.default, (*tensors, training, momentum, epsilon, False)
            )
        for values in list(node.users):  # first of several results; the others are for training only
            values.replace_all_uses_with(plain)
    remove_unused(graph_module)
    graph_module.recompile()


def _argument(node: fx.Node, name: str) -> Any:
    """Return an argument of a batch norm; None if this form of the operator does not have it."""
    try:
        return argument(node, name)
    except KeyError:
        return None


def _writes_for_others(node: fx.Node) -> bool:
    """Return whether an in-place operator can affect other nodes than the readers of its result."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return False
    written = first_argument(node)
    owns = (
        isinstance(written, fx.Node) and written.op == "call_function" and not is_operator(written, RESHAPES)
    )
    return not owns or not node.users or len(written.users) > 1
