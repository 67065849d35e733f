"""Typed views of FX nodes: arguments by the names of the operator's schema, and the layers among the nodes.

Passes and stages read nodes through these views. Unlike positions in ``node.args``, the views have names and
also find arguments that a network passes by keyword or leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from qgait_ptq.graph.operators import ADDITIONS, BATCH_NORMS, CONVOLUTIONS, WEIGHTED, is_operator
from qgait_ptq.system.invariants import of_type


def argument(node: fx.Node, name: str) -> Any:
    """Return an argument of a call of an ATen operator, by the name in the operator's schema.

    Args:
        node: the call.
        name: name in the schema, such as ``dim``.

    Returns:
        The argument, or the schema's default if the call leaves it out.

    Raises:
        KeyError: the operator has no such argument.

    Example:
        >>> import torch
        >>> graph = fx.Graph()
        >>> call = graph.call_function(torch.ops.aten.leaky_relu.default, (graph.placeholder("x"),))
        >>> argument(call, "negative_slope")
        0.01
    """
    if name in node.kwargs:
        return node.kwargs[name]
    for position, declared in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if declared.name == name:
            return node.args[position] if position < len(node.args) else declared.default_value
    raise KeyError(f"{node.target} has no argument {name}")


def first_argument(node: object) -> Any:
    """Return the first argument of a node, usually its input tensor; None if it has none."""
    return node.args[0] if isinstance(node, fx.Node) and node.args else None


def source(node: fx.Node) -> fx.Node:
    """Return the node of a call's first argument, its input tensor.

    Raises:
        TypeError: the first argument is not a node.
    """
    return of_type(first_argument(node), fx.Node)


def operands(node: fx.Node) -> tuple[Any, Any]:
    """Return the two arguments of an operator such as an addition or a matrix product."""
    first, second, *_ = node.args
    return first, second


def adds_two_tensors(node: object) -> bool:
    """Return whether a node is the plain sum of two tensors: no number, and no factor ``alpha``."""
    if not isinstance(node, fx.Node) or not is_operator(node, ADDITIONS):
        return False
    return all(isinstance(one, fx.Node) for one in operands(node)) and argument(node, "alpha") == 1


def pooled_axes(pool: fx.Node) -> int:
    """Return how many axes a pooling such as ``max_pool2d`` pools; they are the last ones of its tensor."""
    return int(pool.target.__name__.split("_pool")[1][0])  # type: ignore[union-attr]


@dataclass(frozen=True)
class WeightedLayer:
    """A convolution or a fully connected layer.

    Attributes:
        node: the call of the operator.
    """

    node: fx.Node

    @classmethod
    def of(cls, node: object) -> WeightedLayer | None:
        """Return the view of a node; None if the node is not a weighted layer."""
        return cls(node) if isinstance(node, fx.Node) and is_operator(node, WEIGHTED) else None

    @property
    def is_convolution(self) -> bool:
        """Return whether the layer is a convolution."""
        return is_operator(self.node, CONVOLUTIONS)

    @property
    def input(self) -> fx.Node:
        """Node that gives the features."""
        return of_type(argument(self.node, "input"), fx.Node)

    @property
    def weight(self) -> fx.Node:
        """Node that gives the weight: a parameter, or the call of its quantizer."""
        return of_type(argument(self.node, "weight"), fx.Node)

    @property
    def bias(self) -> fx.Node | None:
        """Node that gives the bias; None if the layer has none."""
        bias: fx.Node | None = argument(self.node, "bias")
        return bias

    @property
    def groups(self) -> int | fx.Node:
        """Number of channel groups; 1 for a fully connected layer."""
        groups: int | fx.Node = argument(self.node, "groups") if self.is_convolution else 1
        return groups

    @property
    def stride(self) -> list[int]:
        """Stride along each spatial axis."""
        return self._for_each_axis("stride")

    @property
    def padding(self) -> list[int]:
        """Number of zeros before and after each spatial axis."""
        return self._for_each_axis("padding")

    @property
    def dilation(self) -> list[int]:
        """Step between the taps of the kernel along each spatial axis."""
        return self._for_each_axis("dilation")

    def replace_parameters(self, weight: fx.Node, bias: fx.Node | None) -> None:
        """Let the layer read another weight and another bias."""
        rest = self.node.args[3:]
        self.node.args = (self.input, weight, bias, *rest)
        self.node.kwargs = {k: v for k, v in self.node.kwargs.items() if k not in ("input", "weight", "bias")}

    def _for_each_axis(self, name: str) -> list[int]:
        value: int | Sequence[int] = argument(self.node, name)
        axes = int(self.node.target.__name__[len("conv")])  # type: ignore[union-attr]
        values = [value] if isinstance(value, int) else list(value)
        return values * axes if len(values) == 1 else values


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm.

    Attributes:
        node: the call of the operator.
    """

    node: fx.Node

    @classmethod
    def of(cls, node: object) -> BatchNorm | None:
        """Return the view of a node; None if the node is not a batch norm."""
        return cls(node) if isinstance(node, fx.Node) and is_operator(node, BATCH_NORMS) else None

    @property
    def input(self) -> fx.Node:
        """Node that gives the features."""
        return of_type(argument(self.node, "input"), fx.Node)

    @property
    def parameters(self) -> tuple[fx.Node | None, ...]:
        """Nodes of weight, bias, running mean and running variance; None for missing ones."""
        return tuple(argument(self.node, name) for name in ("weight", "bias", "running_mean", "running_var"))

    @property
    def training(self) -> bool:
        """Whether it normalises by the statistics of its input, not by the stored ones."""
        return bool(argument(self.node, "training"))

    @property
    def eps(self) -> float:
        """Number added to the variance."""
        return float(argument(self.node, "eps"))


@dataclass(frozen=True)
class ModuleCall:
    """A call of a module of the graph, such as a quantizer.

    Attributes:
        node: the call.
    """

    node: fx.Node

    @classmethod
    def of(cls, node: object) -> ModuleCall | None:
        """Return the view of a node; None if the node does not call a module."""
        return cls(node) if isinstance(node, fx.Node) and node.op == "call_module" else None

    @property
    def path(self) -> str:
        """Path of the module in the graph module."""
        return str(self.node.target)

    @property
    def input(self) -> fx.Node:
        """Node whose tensor the module takes."""
        return source(self.node)

    @property
    def scales(self) -> tuple[fx.Node, ...]:
        """Further nodes that the module takes: for a bias, the scales of input and weight."""
        return tuple(of_type(given, fx.Node) for given in self.node.args[1:])
