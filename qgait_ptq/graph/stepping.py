"""Running a graph node by node on many batches, with access to all live values.

Layer-by-layer methods need the input of each layer with all earlier layers quantized. Running the network
again for each layer would have quadratic cost. A `Stepper` stops before a node, so that a method can change
it, and continues.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from qgait_ptq.graph.views import source

DEFAULT_MEMORY = 2 * 2**30  # bytes of values that one stepper holds in memory


class ValueStore(MutableMapping[fx.Node, Any]):
    """Values of nodes; tensors beyond the memory limit are stored on disk."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._values: dict[fx.Node, Any] = {}

    def __getitem__(self, node: fx.Node) -> Any:
        value = self._values[node]
        return torch.load(value, weights_only=True) if isinstance(value, Path) else value

    def __setitem__(self, node: fx.Node, value: Any) -> None:
        self._values[node] = self._budget.hold(value)

    def __delitem__(self, node: fx.Node) -> None:
        self._budget.release(self._values.pop(node))

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class MemoryBudget:
    """Counts the bytes of held tensors and writes those beyond a limit to a temporary folder."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.written = limit, 0, 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def hold(self, value: Any) -> Any:
        """Return the value itself, or the path of the file to which it was written."""
        if not isinstance(value, Tensor):
            return value
        if self.used + value.nbytes <= self.limit:
            self.used += value.nbytes
            return value
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qgait-activations-")
        path = Path(self._folder.name) / f"{self.written}.pt"
        self.written += 1
        torch.save(value.contiguous().clone(), path)
        return path

    def release(self, value: Any) -> None:
        """Forget a held value."""
        if isinstance(value, Tensor):
            self.used -= value.nbytes
        elif isinstance(value, Path):
            value.unlink(missing_ok=True)


class Stepper:
    """Runs a graph on batches node by node.

    Parameters are read when they are used, so later nodes see all changes.
    """

    def __init__(
        self, graph_module: fx.GraphModule, batches: Sequence[Tensor], memory: int = DEFAULT_MEMORY
    ) -> None:
        """Prepare a run that starts before the first node.

        Args:
            graph_module: graph with one input.
            batches: inputs of the separate runs.
            memory: bytes of values to hold in memory; the rest goes to disk.
        """
        self.graph_module = graph_module
        self.batches = list(batches)
        self._nodes = list(graph_module.graph.nodes)
        self._last_use = _last_uses(self._nodes)
        self._position = 0
        budget = MemoryBudget(memory)
        self._interpreters = []
        for batch in self.batches:
            interpreter = fx.Interpreter(graph_module, garbage_collect_values=False)
            interpreter.env = ValueStore(budget)  # type: ignore[assignment]
            interpreter.args_iter = iter((batch,))
            self._interpreters.append(interpreter)

    def advance(self, stop: str) -> None:
        """Run all nodes before the node `stop`."""
        while self._nodes[self._position].name != stop:
            node = self._nodes[self._position]
            if node.op != "get_attr":
                with torch.no_grad():
                    for interpreter in self._interpreters:
                        self._run(interpreter, node)
            self._position += 1

    def value(self, batch: int, node: fx.Node) -> Any:
        """Return the value of a node on a batch. A later node must still need it."""
        return self._interpreters[batch].env[node]

    def input_of(self, layer: str) -> Iterator[Tensor]:
        """Yield the first argument of a later node for each batch."""
        (node,) = (n for n in self._nodes if n.name == layer)
        for interpreter in self._interpreters:
            yield interpreter.env[source(node)]

    def _run(self, interpreter: fx.Interpreter, node: fx.Node) -> None:
        interpreter.env[node] = run_node(interpreter, node)
        for done in self._last_use.get(node, ()):
            del interpreter.env[done]


def run_node(interpreter: fx.Interpreter, node: fx.Node) -> Any:
    """Run one node with the current values of its parameters."""
    parameters = [read for read in node.all_input_nodes if read.op == "get_attr"]
    for parameter in parameters:
        interpreter.env[parameter] = interpreter.fetch_attr(str(parameter.target))
    result = interpreter.run_node(node)
    for parameter in parameters:
        del interpreter.env[parameter]
    return result


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Return the values that are not needed after each node."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for read in node.all_input_nodes:
            if read.op != "get_attr":
                last[read] = node
    values: dict[fx.Node, list[fx.Node]] = {}
    for read, user in last.items():
        values.setdefault(user, []).append(read)
    return values
