"""Search for the operator that torch's ONNX exporter writes for one size only."""

from __future__ import annotations

import copy

import onnx
import torch
from torch import Tensor, fx

from qgait_ptq.capture.captured import Capture
from qgait_ptq.errors import QgaitError
from qgait_ptq.exporters.onnx_file import export_float
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.graph.recorder import run_recorded
from qgait_ptq.runtime.sessions import open_unguarded, run_session

TOLERANCE = 1e-3  # relative to the largest value of a tensor
SMALLEST = 1e-6  # such a value


def find_wrong_node(
    graph_module: fx.GraphModule, captured: Capture, opset: int, inputs: Tensor
) -> fx.Node | None:
    """Return the first node whose tensor is wrong in a file of the float network.

    Args:
        graph_module: float network.
        captured: capture with the axes that are free in the file.
        opset: version of the ONNX operators.
        inputs: input of a size at which a file of the network is wrong.

    Returns:
        The node; None if the float network has no such node, so that the cause lies elsewhere.
    """
    graph_module, inputs = to_device(copy.deepcopy(graph_module), torch.device("cpu")), inputs.cpu()
    expected: dict[fx.Node, Tensor] = {}

    def keep(node: fx.Node, value: object) -> None:
        if isinstance(value, Tensor) and node.op in ("call_function", "call_module"):
            expected[node] = value

    with torch.inference_mode():
        run_recorded(graph_module, inputs, keep)
    nodes = list(expected)
    try:
        model = export_float(_with_outputs(graph_module, nodes), captured, opset)
    except QgaitError:  # only the network as a whole can be exported
        return None
    names = dict(zip(nodes, (output.name for output in model.graph.output), strict=True))

    def is_wrong(node: fx.Node) -> bool:
        return not _is_right(_until(model, names[node]), inputs, expected[node])

    if not nodes or not is_wrong(nodes[-1]):
        return None
    right, wrong = -1, len(nodes) - 1
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (right, middle) if is_wrong(nodes[middle]) else (middle, wrong)
    node = nodes[wrong]
    # Branches lie side by side in the list, so an input of the node found can be wrong, too.
    while sources := [one for one in node.all_input_nodes if one in expected and is_wrong(one)]:
        node = sources[0]
    return node


def _with_outputs(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """Return a copy of a graph with the tensors of some nodes as its outputs."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph_module.graph.nodes:
        if node.op != "output":
            copied[node] = graph.node_copy(node, lambda source: copied[source])
    graph.output(tuple(copied[node] for node in nodes))
    return fx.GraphModule(graph_module, graph)


def _until(model: onnx.ModelProto, name: str) -> bytes:
    """Return a model that computes one tensor of another model and no more."""
    shortened = onnx.ModelProto()
    shortened.CopyFrom(model)
    needed, nodes = {name}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    graph = shortened.graph
    for values, kept in (
        (graph.node, reversed(nodes)),
        (graph.output, [value for value in model.graph.output if value.name == name]),
        (graph.initializer, [value for value in model.graph.initializer if value.name in needed]),
    ):
        del values[:]
        values.extend(kept)
    return shortened.SerializeToString()


def _is_right(model: bytes, inputs: Tensor, expected: Tensor) -> bool:
    """Return whether a model computes the expected tensor."""
    try:
        actual = torch.from_numpy(run_session(open_unguarded(model), inputs.numpy()))
    except QgaitError:  # the runtime does not run it at this size
        return False
    if actual.shape != expected.shape:
        return False
    if not actual.numel() or not expected.is_floating_point():
        return torch.equal(actual, expected.to(actual.dtype))
    largest = float(expected.abs().max())
    return bool((actual - expected).abs().max() <= TOLERANCE * max(largest, SMALLEST))
