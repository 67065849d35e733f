"""LeakyReLU behind maxima instead of before them: it is monotone, so both orders give the same."""

from __future__ import annotations

from torch import fx

from qgait_ptq.graph.attributes import remove_unused
from qgait_ptq.graph.operators import LEAKY_RECTIFIERS, MAX_POOLS, MAXIMA, is_operator

DEFAULT_SLOPE = 0.01


def move_rectifiers_behind_maxima(graph_module: fx.GraphModule) -> None:
    """Swap ``max(leaky_relu(x))`` to ``leaky_relu(max(x))``, in place: fewer values are bent.

    Left alone are slopes below zero, which are not monotone, and rectifiers that others read, too.
    """
    graph = graph_module.graph
    for maximum in list(graph.nodes):
        if not is_operator(maximum, MAX_POOLS | MAXIMA):
            continue
        rectifier = maximum.args[0]
        if not is_operator(rectifier, LEAKY_RECTIFIERS) or len(rectifier.users) != 1:
            continue
        slope = rectifier.args[1] if len(rectifier.args) > 1 else DEFAULT_SLOPE
        if not isinstance(slope, (int, float)) or slope < 0:
            continue
        maximum.replace_input_with(rectifier, rectifier.args[0])
        with graph.inserting_after(maximum):
            late = graph.call_function(rectifier.target, (maximum, *rectifier.args[1:]))
        maximum.replace_all_uses_with(late, delete_user_cb=lambda user, late=late: user is not late)
    remove_unused(graph_module)
