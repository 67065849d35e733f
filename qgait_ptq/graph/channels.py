"""Channel groups: tensors that must have the same channel factors, connected by additions and pooling.

The writers of a channel can be divided by a positive factor if its readers are multiplied by it. ReLU, leaky
ReLU, maxima and sums commute with the factor. In a residual network, all layers that write to a stream and
all that read it must change together. They form one group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from qgait_ptq.graph.attributes import shared_parameters, tensor_of
from qgait_ptq.graph.operators import (
    ADDITIONS,
    LEAKY_RECTIFIERS,
    MAX_POOLS,
    MAXIMA,
    RECTIFIERS,
    RESHAPES,
    aten,
    is_operator,
)
from qgait_ptq.graph.shapes import observed_integer, observed_shape
from qgait_ptq.graph.views import WeightedLayer, argument, first_argument, operands, pooled_axes, source

MOVES = (aten.permute.default, aten.transpose.int, aten.select.int)  # sizes do not tell where an axis is
KEEPING = RECTIFIERS | LEAKY_RECTIFIERS


@dataclass
class ChannelGroup:
    """Tensors with the same channels.

    Attributes:
        writers: convolutions that write the channels.
        readers: convolutions that read the channels.
        tensors: channel axis of each tensor, by node.
        fixed: whether another reader or writer does not commute with a factor.
    """

    writers: list[fx.Node] = field(default_factory=list)
    readers: list[fx.Node] = field(default_factory=list)
    tensors: dict[fx.Node, int] = field(default_factory=dict)
    fixed: bool = False

    def fix(self) -> None:
        """Keep the channels as they are."""
        self.fixed = True

    def absorb(self, other: ChannelGroup) -> None:
        """Add the members of another group."""
        self.writers += other.writers
        self.readers += other.readers
        self.tensors |= other.tensors
        self.fixed |= other.fixed


def find_channel_groups(graph_module: fx.GraphModule) -> list[ChannelGroup]:
    """Return the groups of a simplified float graph whose channels can be scaled.

    Args:
        graph_module: graph whose shapes are recorded.
    """
    finder = _Finder(graph_module)
    for node in graph_module.graph.nodes:
        finder.visit(node)
    unique = {id(group): group for group in finder.groups.values()}
    return [group for group in unique.values() if not group.fixed and group.writers and group.readers]


class _Finder:
    """Walks a graph and joins groups."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.graph_module = graph_module
        self.shared = shared_parameters(graph_module)
        self.groups: dict[fx.Node, ChannelGroup] = {}

    def visit(self, node: fx.Node) -> None:
        """Put a node's tensor into a group."""
        if self._is_scalable(node):
            self._read(source(node), node)
            self.groups[node] = ChannelGroup(writers=[node], tensors={node: 1})
            return
        axis = self._kept_axis(node)
        if axis is not None:
            self._join(node, [source(node)], axis)
        elif is_operator(node, ADDITIONS) and self._same_shapes(node):
            axes = {self._axis(operand) for operand in operands(node)}
            self._join(node, list(operands(node)), axes.pop() if len(axes) == 1 else None)
        else:
            for read in node.all_input_nodes:
                if read in self.groups:
                    self.groups[read].fix()

    def _read(self, features: fx.Node, reader: fx.Node) -> None:
        if features in self.groups:
            self.groups[features].readers.append(reader)
            if self._axis(features) != 1:
                self.groups[features].fix()

    def _join(self, node: fx.Node, sources: list[object], axis: int | None) -> None:
        """Join the groups of all sources and the node into one."""
        known = [self.groups[s] for s in sources if isinstance(s, fx.Node) and s in self.groups]
        joined = ChannelGroup(fixed=axis is None or len(known) < len(sources))
        for group in {id(group): group for group in known}.values():
            joined.absorb(group)
        joined.tensors[node] = 1 if axis is None else axis
        for member in joined.tensors:
            self.groups[member] = joined

    def _axis(self, node: fx.Node) -> int | None:
        return self.groups[node].tensors[node] if node in self.groups else None

    def _is_scalable(self, node: fx.Node) -> bool:
        """Return whether a node is an ungrouped convolution with a weight that no other layer shares."""
        layer = WeightedLayer.of(node)
        if layer is None or not layer.is_convolution or observed_shape(node) is None:
            return False
        parameters = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        stored = all(tensor_of(self.graph_module, p) is not None for p in parameters)
        return (
            observed_integer(layer.groups) == 1
            and stored
            and not any(str(p.target) in self.shared for p in parameters)
        )

    def _kept_axis(self, node: fx.Node) -> int | None:
        """Return the channel axis after an operator that commutes with factors; None for other operators."""
        features = first_argument(node)
        axis = self._axis(features) if isinstance(features, fx.Node) else None
        before, after = observed_shape(features), observed_shape(node)
        if axis is None or before is None or after is None:
            return None
        if is_operator(node, KEEPING):
            return axis
        if is_operator(node, MAX_POOLS):
            return axis if axis < len(before) - pooled_axes(node) else None
        if is_operator(node, MAXIMA):
            dims = [observed_integer(d) % len(before) for d in argument(node, "dim")] or range(len(before))
            keeps = len(after) == len(before)
            return None if axis in dims else axis - (0 if keeps else sum(d < axis for d in dims))
        if node.target in MOVES:
            return self._moved_axis(node, axis, len(before))
        if is_operator(node, RESHAPES):
            if before[axis:] == after[len(after) - len(before) + axis :]:
                return len(after) - len(before) + axis
            if before[: axis + 1] == after[: axis + 1]:
                return axis
        return None

    @staticmethod
    def _moved_axis(node: fx.Node, axis: int, axes: int) -> int | None:
        """Return where an operator moves an axis; None if it takes one entry of it."""
        if node.target is aten.permute.default:
            return [observed_integer(d) % axes for d in argument(node, "dims")].index(axis)
        if node.target is aten.select.int:
            dim = observed_integer(argument(node, "dim")) % axes
            return None if dim == axis else axis - (dim < axis)
        first, second = (observed_integer(argument(node, name)) % axes for name in ("dim0", "dim1"))
        return {first: second, second: first}.get(axis, axis)

    def _same_shapes(self, node: fx.Node) -> bool:
        shapes = [observed_shape(operand) for operand in operands(node)]
        return None not in shapes and shapes[0] == shapes[1]
