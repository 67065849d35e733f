"""Annotations: the record of what is quantized, written by placement and read by insertion.

As in torchao's pt2e, there are three kinds: a quantizer of its own, a quantizer shared with another tensor,
and derived parameters (a bias has the scale of its accumulator).
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
        grid: grid of the tensor.
        observer: name of the observer that chooses the range.
        channel_axis: axis with a scale for each channel; None means one scale.
    """

    grid: IntegerGrid
    observer: str
    channel_axis: int | None = None


@dataclass(frozen=True)
class SharedSpec:
    """A quantizer shared with another node's output.

    Attributes:
        source: name of the node that owns the quantizer.
    """

    source: str


@dataclass(frozen=True)
class BiasSpec:
    """An int32 bias, whose scale is the scale of the input times the scale of the weight."""


@dataclass(frozen=True)
class WeightOnlySpec:
    """A stored weight of an operator that computes in float: integers in the file, float in the operator.

    Attributes:
        parameter: name of the parameter's node.
        reader: name of the node that reads the parameter: the operator, or an expansion before it.
        quantizer: quantizer of the weight.
    """

    parameter: str
    reader: str
    quantizer: OwnSpec


@dataclass(frozen=True)
class Annotation:
    """Quantization of one node.

    Attributes:
        output: quantizer of the output; None leaves it in float.
        for_layers: narrower quantizer through which layers read the quantized output; None if layers read the
            same values as other operators.
        weight: quantizer of the weight; None leaves it in float.
        bias: quantization of the bias; None leaves it in float.
        weight_only: stored weights of an operator that computes in float.
        integer: whether the runtime computes the node on integers.
        reason: reason why it does not.
    """

    output: OwnSpec | SharedSpec | None = None
    for_layers: OwnSpec | None = None
    weight: OwnSpec | None = None
    bias: BiasSpec | None = None
    weight_only: tuple[WeightOnlySpec, ...] = ()
    integer: bool = False
    reason: str = ""


class LastLayer(Enum):
    """Computation of the layer that gives the embedding. Its weight and input are always quantized."""

    FLOAT = auto()  # in float, from integer weights: for runtimes without kernels for float results
    INTEGER_SUMS = auto()  # on integers; its sums leave the network in float
    INTEGER = auto()  # on integers, and the embedding is quantized, too


@dataclass(frozen=True)
class PlacementRules:
    """A target's rules for placing quantizers, by operator.

    Attributes:
        weighted: operators with a weight that run on integers. Input, weight and output are quantized.
        absorbed: operators that a kernel fuses with the operator before them, such as ReLU with a
            convolution. Only their output is quantized.
        elementwise: operators that run on integers if all inputs are integers. Inputs and outputs have
            quantizers of their own.
        value_preserving: operators that run on integers and share the quantizer of their input.
        reducing: operators in `value_preserving` that make the tensor smaller. They run on integers even if
            no integer operator follows.
        activation_signed: whether activations are signed integers.
        activation_symmetric: whether activations have zero-point 0.
        last_layer: computation of a weighted operator whose result leaves the network.
        one_sided_additions: whether the layer before an addition computes it on its integer sums. Only the
            other input, the shortcut, is quantized then.
        hand_over: whether the last tensor on integers is quantized even if only float operators read it.
        saturating_pairs: whether kernels for some processors add two neighbouring products in 16 bits.
            Weights are limited in pairs then; see `quantizer.pairs`.
        weight_only: operators that compute in float, whose stored weights are integers in the file.
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
    weight_only: frozenset[object] = frozenset()


@dataclass(frozen=True)
class BitWidths:
    """Widths of weights and activations.

    Attributes:
        weight: width of weights.
        activation: width of inputs of weighted layers.
        edge: both widths in edge layers.
        input: width of the network's inputs, 1 to 8; None means `edge`.
        elementwise: width of tensors that other operators than layers read, such as the inputs of an
            addition. A layer that reads such a tensor reads it at its own width.
        weight_observer: observer of weights.
        activation_observer: observer of activations.
        layers: weight bits and activation bits of single layers by pattern; None means the default width. A
            pattern is a shell pattern of module paths, or ``operator:conv2d``.
        include: patterns of layers that are quantized; an empty tuple means all layers.
        exclude: patterns of layers that stay in float.
        limit_pairs: whether weights are limited in pairs if the target's kernels need it.
        apart: whether layers have their own quantizer of a tensor that an addition reads, too, even at the
            same width. Graphs of all widths then have the same nodes.
        raw: whether the network's input is other values than silhouettes.
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
    apart: bool = False
    raw: bool = False


def annotation_of(node: object) -> Annotation:
    """Return the annotation of a node; an empty one if it has none."""
    annotation = node.meta.get(ANNOTATION_KEY) if isinstance(node, fx.Node) else None
    return annotation if isinstance(annotation, Annotation) else Annotation()
