"""Operators that write into tensors in place, brought to a form without side effects.

A graph whose nodes are moved, merged and dropped must not depend on one of them changing another's values
behind its back, as ``mask[:, :frames] = 1`` does.
"""

from __future__ import annotations

from torch import fx
from torch.export import ExportedProgram

from qgait_ptq.graph.attributes import remove_unused
from qgait_ptq.graph.operators import RESHAPES, aten, is_operator
from qgait_ptq.graph.views import first_argument

NORMALISATIONS = frozenset({aten._native_batch_norm_legit_no_training.default})


def without_side_effects(program: ExportedProgram) -> ExportedProgram:
    """The program itself where no operator changes what another one reads; else its functional form."""
    if any(_writes_for_others(node) for node in program.graph.nodes):
        return program.run_decompositions({})
    return program


def restore_batch_norms(graph_module: fx.GraphModule) -> None:
    """Bring the batch norms of a functional form back to the operator that later stages know."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, NORMALISATIONS):
            continue
        *tensors, momentum, epsilon = node.args
        with graph.inserting_before(node):
            plain = graph.call_function(aten.batch_norm.default, (*tensors, False, momentum, epsilon, False))
        for values in list(node.users):  # the first of three results; the others are read in training only
            values.replace_all_uses_with(plain)
    remove_unused(graph_module)


def _writes_for_others(node: fx.Node) -> bool:
    """Whether an in-place operator may be seen by others than the readers of its result."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return False
    written = first_argument(node)
    owns = (
        isinstance(written, fx.Node) and written.op == "call_function" and not is_operator(written, RESHAPES)
    )
    return not owns or not node.users or len(written.users) > 1
