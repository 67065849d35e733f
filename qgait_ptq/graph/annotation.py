"""What is to be quantized, as data: the annotations that placement writes and insertion obeys.

Three kinds say all, as in torchao's pt2e: a quantizer of its own, the same quantizer as another tensor, and
parameters derived from others (a bias, whose scale is that of its accumulator).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from torch import fx

from qgait_ptq.quantizer.grid import IntegerGrid

ANNOTATION_KEY = "qgait.annotation"


@dataclass(frozen=True)
class OwnSpec:
    """A quantizer of its own.

    Attributes:
        grid: the integers.
        observer: name of the observer that finds the range.
        channel_axis: axis with a scale for each channel; None is per tensor.
    """

    grid: IntegerGrid
    observer: str
    channel_axis: int | None = None


@dataclass(frozen=True)
class SharedSpec:
    """The quantizer of another node's output.

    Attributes:
        source: name of that node.
    """

    source: str


@dataclass(frozen=True)
class BiasSpec:
    """Int32 with the scale of the input times the scale of the weight."""


@dataclass(frozen=True)
class Annotation:
    """What a node's placement decided.

    Attributes:
        output: how the tensor that the node gives is quantized; None leaves it in float.
        weight: how its weight is quantized.
        bias: whether its bias is rounded to int32.
        integer: the runtime computes the node on integers.
        reason: why not, where it does not.
    """

    output: OwnSpec | SharedSpec | None = None
    weight: OwnSpec | None = None
    bias: BiasSpec | None = None
    integer: bool = False
    reason: str = ""


class LastLayer(Enum):
    """How the layer that gives the embedding computes; its weight and its input are quantized in any case."""

    FLOAT = auto()  # in float, from integer weights: for runtimes without kernels of float results
    INTEGER_SUMS = auto()  # on integers; its sums leave the network in float
    INTEGER = auto()  # on integers, and the embedding is quantized, too


@dataclass(frozen=True)
class PlacementRules:
    """Where a target wants its quantizers: a table over operators.

    Attributes:
        weighted: operators with a weight that run on integers; input, weight and output are quantized.
        absorbed: operators that the quantizer of the operator before them absorbs, such as ReLU into a
            convolution: only what comes out behind them is quantized.
        elementwise: operators that run on integers where all their inputs are integers: input and output
            are quantized with quantizers of their own.
        value_preserving: operators that run on integers and share the quantizer of their input.
        reducing: those of `value_preserving` that make the tensor smaller, so that they are worth running
            on integers even where no other integer operator follows.
        activation_signed: signed integers for activations.
        activation_symmetric: zero_point 0 for activations.
        last_layer: how a weighted operator whose result leaves the network computes.
        one_sided_additions: an addition is computed by the layer before it, on the sums of that layer, so
            only its other input, the shortcut, is quantized.
        hand_over: the last tensor computed on integers is quantized even where only float operators read it.
        saturating_pairs: kernels for some processors add two neighbouring products in 16 bits, so weights are
            limited in pairs, see `quantizer.pairs`.
    """

    weighted: frozenset[object]
    absorbed: frozenset[object]
    elementwise: frozenset[object]
    value_preserving: frozenset[object]
    reducing: frozenset[object]
    activation_signed: bool = False
    activation_symmetric: bool = False
    last_layer: LastLayer = LastLayer.FLOAT
    one_sided_additions: bool = False
    hand_over: bool = True
    saturating_pairs: bool = False


@dataclass(frozen=True)
class BitWidths:
    """Widths of weights and activations.

    Attributes:
        weight: of weighted layers.
        activation: of their inputs.
        edge: of both, in the first and the last weighted layer, and in all that read the network's inputs.
        input: of the network's inputs themselves, 1 to 8; None leaves them to `edge`.
        elementwise: of tensors that feed no weighted layer, such as both branches of a residual addition.
        weight_observer: for the ranges of weights.
        activation_observer: for the ranges of activations.
        layers: pattern → (weight bits, activation bits) of layers that differ; None leaves what the rest
            says. A pattern is a shell pattern of module paths, or ``operator:conv2d``.
        include: patterns of the layers that are quantized; none quantizes all.
        exclude: patterns of layers that stay in float.
        limit_pairs: whether weights are limited in pairs where the target's kernels need that.
    """

    weight: int
    activation: int
    edge: int = 8
    input: int | None = None
    elementwise: int = 8
    weight_observer: str = "minmax"
    activation_observer: str = "mse"
    layers: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit_pairs: bool = True


def annotation_of(node: object) -> Annotation:
    """The annotation of a node; an empty one where placement decided nothing."""
    found = node.meta.get(ANNOTATION_KEY) if isinstance(node, fx.Node) else None
    return found if isinstance(found, Annotation) else Annotation()
