"""Moving LeakyReLU after maxima: it is monotone, so both orders give the same result."""

from __future__ import annotations

from torch import fx

from qgait_ptq.graph.operators import LEAKY_RECTIFIERS, MAX_POOLS, MAXIMA, aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.views import argument, source


def sink_leaky_relu(graph_module: fx.GraphModule) -> None:
    """Swap ``max(leaky_relu(x))`` to ``leaky_relu(max(x))``: fewer values are computed.

    Slopes below zero are not monotone and stay, as do rectifiers with other readers.
    """
    graph = graph_module.graph
    for maximum in list(graph.nodes):
        if not is_operator(maximum, MAX_POOLS | MAXIMA):
            continue
        rectifier = source(maximum)
        if not is_operator(rectifier, LEAKY_RECTIFIERS) or len(rectifier.users) != 1:
            continue
        slope = argument(rectifier, "negative_slope")
        if not isinstance(slope, (int, float)) or slope < 0:
            continue
        maximum.replace_input_with(rectifier, source(rectifier))
        with graph.inserting_after(maximum):
            sunk = graph.call_function(aten.leaky_relu.default, (maximum, slope))
        maximum.replace_all_uses_with(sunk, delete_user_cb=lambda user, sunk=sunk: user is not sunk)


SINK_LEAKY_RELU = GraphPass("sink-leaky-relu", sink_leaky_relu)
