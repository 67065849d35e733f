"""Search for the operator that torch's ONNX exporter writes for one size only."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx

from qgait_ptq.capture.captured import Capture
from qgait_ptq.errors import QgaitError
from qgait_ptq.exporters.onnx_file import export_float
from qgait_ptq.graph.attributes import remove_unused
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.graph.recorder import run_recorded
from qgait_ptq.runtime.sessions import open_unguarded, run_session

TOLERANCE = 1e-3  # relative to the largest value of a tensor


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
    values: dict[fx.Node, Tensor] = {}

    def keep(node: fx.Node, value: object) -> None:
        if isinstance(value, Tensor) and node.op in ("call_function", "call_module"):
            values[node] = value

    with torch.inference_mode():
        run_recorded(graph_module, inputs, keep)
    nodes = list(values)

    def is_wrong(node: fx.Node) -> bool:
        return _is_wrong(_until(graph_module, node), captured, opset, inputs, values[node])

    if not nodes or not is_wrong(nodes[-1]):
        return None
    right, wrong = -1, len(nodes) - 1
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (right, middle) if is_wrong(nodes[middle]) else (middle, wrong)
    node = nodes[wrong]
    # Branches lie side by side in the list, so an input of the node found can be wrong, too.
    while sources := [one for one in node.all_input_nodes if one in values and is_wrong(one)]:
        node = sources[0]
    return node


def _until(graph_module: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """Return a copy of a graph that ends with a node."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph_module.graph.nodes:
        if node.op == "output":
            break
        copied[node] = graph.node_copy(node, lambda source: copied[source])
    graph.output(copied[last])
    shortened = fx.GraphModule(graph_module, graph)
    remove_unused(shortened)
    return shortened


def _is_wrong(
    graph_module: fx.GraphModule, captured: Capture, opset: int, inputs: Tensor, expected: Tensor
) -> bool:
    try:
        model = export_float(graph_module, captured, opset)
        actual = torch.from_numpy(run_session(open_unguarded(model.SerializeToString()), inputs.numpy()))
    except QgaitError:  # the exporter, or the runtime at this size
        return True
    if actual.shape != expected.shape:
        return True
    difference = (actual.double() - expected.double()).abs().max() if actual.numel() else torch.zeros(())
    return not difference <= TOLERANCE * expected.double().abs().max().clamp_min(1e-6)
