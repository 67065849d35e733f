"""Running a graph and visiting the value of each node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx


class _Recorder(fx.Interpreter):
    """Interpreter that passes each node and its value to a function."""

    def __init__(self, graph_module: fx.GraphModule, visit: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(graph_module)
        self._visit = visit

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self._visit(n, value)
        return value


def run_recorded(graph_module: fx.GraphModule, batch: Tensor, visit: Callable[[fx.Node, Any], None]) -> Any:
    """Run a graph and pass each node and its value to a function as soon as it is computed.

    Args:
        graph_module: graph to run.
        batch: silhouettes ``[n, s, h, w]``.
        visit: function that is called with each node and its value.

    Returns:
        The output of the graph.
    """
    return _Recorder(graph_module, visit).run(batch)
