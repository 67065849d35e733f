"""Converting networks with several inputs to graphs with one input, and back.

In the graph, each input is a node `FRAME_INPUT`, which takes it out of the joined frames. `FRAME_INPUT` is a
custom operator, so rewrites do not look through it, and each input has its own quantizer.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, fx, nn

from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.frame_layout import FrameInput, FrameLayout, InputKind
from qgait_ptq.graph.operators import EMBEDDINGS, RESHAPES, aten, is_operator
from qgait_ptq.graph.shapes import observed_integer, observed_shape

# Operators that keep all values of a tensor of integers.
SAME_INTEGERS = (RESHAPES | {aten.to.dtype}) - {aten.slice.Tensor, aten.select.int}


@torch.library.custom_op("qgait_ptq::frame_input", mutates_args=())
def take_frame_input(frames: Tensor, name: str, start: int, shape: list[int], kind: str) -> Tensor:
    """Take one input out of frames ``[n, s, F]``: ``[n, s, *shape]``."""
    entry = frames[..., start : start + math.prod(shape)].reshape(*frames.shape[:2], *shape)
    return entry.round().to(torch.int64) if kind == InputKind.INTEGERS else entry.clone()


@take_frame_input.register_fake
def _(frames: Tensor, name: str, start: int, shape: list[int], kind: str) -> Tensor:
    dtype = torch.int64 if kind == InputKind.INTEGERS else frames.dtype
    return frames.new_empty((*frames.shape[:2], *shape), dtype=dtype)


FRAME_INPUT = torch.ops.qgait_ptq.frame_input.default


class SeveralInputs(nn.Module):
    """A network with several inputs, called with all of them in one tensor."""

    def __init__(self, network: nn.Module, layout: FrameLayout) -> None:
        super().__init__()
        self.network, self.layout = network, layout

    def forward(self, frames: Tensor) -> Tensor:
        """Compute the network's output from joined frames ``[n, s, F]``."""
        given: Tensor = self.network(
            *(
                FRAME_INPUT(frames, entry.name, start, list(entry.shape), entry.kind.value)
                for entry, start in zip(self.layout.inputs, self.layout.starts, strict=True)
            )
        )
        return given


class OneInput(nn.Module):
    """A network with variadic inputs, called with one: torch.export needs a fixed number."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        """Compute the network's output from one input ``[n, s, ...]``."""
        given: Tensor = self.network(frames)
        return given


def join_inputs(network: nn.Module, layout: FrameLayout | None) -> nn.Module:
    """Return the network with a single input.

    Args:
        network: network with one or several inputs.
        layout: layout of several inputs; None for one input.
    """
    if layout is not None:
        return SeveralInputs(network, layout)
    parameters = inspect.signature(network.forward).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    return OneInput(network) if takes_any else network


def input_nodes(graph_module: fx.GraphModule) -> dict[fx.Node, FrameInput]:
    """Return the nodes that take out inputs; none if the network has one input."""
    return {
        node: FrameInput(str(node.args[1]), tuple(node.args[3]), InputKind(node.args[4]))
        for node in graph_module.graph.nodes
        if node.op == "call_function" and node.target is FRAME_INPUT
    }


def largest_integers(graph_module: fx.GraphModule) -> dict[str, int]:
    """Return the largest integer of each input that the network looks up in a table; the smallest is 0.

    Inputs that the network computes with before it looks them up are left out: their limits are not known.
    """
    largest: dict[str, int] = {}
    for node, entry in input_nodes(graph_module).items():
        pending = [node] if entry.kind is InputKind.INTEGERS else []
        while pending:
            source = pending.pop()
            for reader in source.users:
                if is_operator(reader, EMBEDDINGS) and reader.args[1] is source:
                    (rows, *_) = observed_shape(reader.args[0]) or (0,)
                    largest[entry.name] = min(rows - 1, largest.get(entry.name, rows))
                elif reader.target is aten.one_hot.default and observed_integer(reader.args[1]) > 0:
                    classes = observed_integer(reader.args[1])
                    largest[entry.name] = min(classes - 1, largest.get(entry.name, classes))
                elif is_operator(reader, SAME_INTEGERS):
                    pending.append(reader)
    return {name: limit for name, limit in largest.items() if limit >= 0}


def is_network_input(node: object) -> bool:
    """Return whether a node gives an input of the network."""
    return isinstance(node, fx.Node) and (node.op == "placeholder" or node.target is FRAME_INPUT)


def check_all_read(graph_module: fx.GraphModule, network: nn.Module) -> None:
    """Check that a captured network reads all its inputs.

    Raises:
        CaptureError: an input is not read. The error names it.
    """
    if isinstance(network, SeveralInputs):
        read = {entry.name for entry in input_nodes(graph_module).values()}
        unread = [entry.name for entry in network.layout.inputs if entry.name not in read]
        if unread:
            raise CaptureError(
                f"the network does not read its input {', '.join(unread)}; remove it from the data. If other "
                "code joins the inputs before the network, store them joined"
            )


def split_inputs(graph_module: fx.GraphModule) -> list[FrameInput]:
    """Restore the several inputs of a graph, in place.

    Returns:
        The inputs in order; an empty list if the graph has one input and did not change.
    """
    parts = input_nodes(graph_module)
    if not parts:
        return []
    graph = graph_module.graph
    (joined,) = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_before(joined):
        placeholders = {node: graph.placeholder(entry.name) for node, entry in parts.items()}
    for node, placeholder in placeholders.items():
        node.replace_all_uses_with(placeholder)
        graph.erase_node(node)
    # Other readers only read batch size and frame count, which all inputs have.
    joined.replace_all_uses_with(next(iter(placeholders.values())))
    graph.erase_node(joined)
    graph_module.recompile()
    return list(parts.values())


def split_values(frames: Tensor, parts: list[FrameInput]) -> tuple[Tensor, ...]:
    """Split joined frames ``[n, s, F]`` into the inputs of a graph, if it was split."""
    if not parts:
        return (frames,)
    starts = FrameLayout(tuple(parts)).starts
    return tuple(
        take_frame_input(frames, entry.name, start, list(entry.shape), entry.kind.value)
        for entry, start in zip(parts, starts, strict=True)
    )
