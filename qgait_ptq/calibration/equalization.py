"""Equalization: scale the channels between layers so that activations and weights quantize well.

Weight equalization is that of Nagel et al. (*Data-Free Quantization Through Weight Equalization and Bias
Correction*, ICCV 2019), over groups of layers instead of pairs, so that residual streams take part. At few
activation bits it is the activations that cost: with one scale for a tensor, a channel with small values has
few levels. There the factors follow the size of the channels' values, as in SmoothQuant (Xiao et al. 2023),
and the weights, which have a scale for each output channel and compensating rounding, take the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, fx

from qgait_ptq.errors import CalibrationError
from qgait_ptq.graph.attributes import set_parameter, tensor_of
from qgait_ptq.graph.channels import ChannelGroup, find_channel_groups
from qgait_ptq.graph.recorder import run_recorded
from qgait_ptq.graph.views import WeightedLayer, source
from qgait_ptq.system.invariants import present

LARGEST_FACTOR = 16.0
DEAD = 1e-3  # of the mean: channels below it stay as they are
TOLERANCE = 1e-3  # of the largest value of an embedding
ACTIVATION_STRENGTH = 0.5
ROUNDS = 3  # a layer reads one group and writes another, so the factors settle over some rounds


class Equalization(StrEnum):
    """What the factors follow."""

    NONE = "none"
    WEIGHTS = "weights"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Equalized:
    """What was done.

    Attributes:
        groups: how many there are.
        factors: name of a layer → what its output channels were divided by, ``[c]``.
    """

    groups: int
    factors: dict[str, Tensor]


def equalize(
    graph_module: fx.GraphModule, batches: Sequence[Tensor], kind: Equalization, strength: float | None = None
) -> Equalized:
    """Equalize the channel groups of a simplified float graph in place.

    Args:
        graph_module: its shapes are recorded.
        batches: silhouettes ``[n, s, h, w]`` in [0, 1].
        kind: what the factors follow.
        strength: exponent of the factors; 1 makes all channels equal. None takes 1 for weights, and ½ for
            activations, whose factors the weights have to bear.

    Raises:
        CalibrationError: the network computes something else afterwards.
    """
    groups = find_channel_groups(graph_module) if kind is not Equalization.NONE else []
    if not groups:
        return Equalized(0, {})
    if strength is None:
        strength = ACTIVATION_STRENGTH if kind is Equalization.ACTIVATIONS else 1.0
    factors: dict[str, Tensor] = {}
    with torch.no_grad():
        expected = graph_module(batches[0])
        if kind is Equalization.ACTIVATIONS:
            for group, sizes in zip(groups, _activation_sizes(graph_module, groups, batches), strict=True):
                _scale(graph_module, group, _factors(sizes, strength), factors)
        else:
            for _ in range(ROUNDS):
                for group in groups:
                    _scale(graph_module, group, _weight_factors(graph_module, group, strength), factors)
        difference = float((graph_module(batches[0]) - expected).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):
        raise CalibrationError(
            f"equalization changed the network's output by {difference:.2e}; "
            "set `equalization: none`, and please report this network"
        )
    return Equalized(len(groups), factors)


def _activation_sizes(
    graph_module: fx.GraphModule, groups: list[ChannelGroup], batches: Sequence[Tensor]
) -> list[Tensor]:
    """Return the root mean square by channel of what the readers of each group read."""
    read = [{source(reader) for reader in group.readers} for group in groups]
    energies: dict[fx.Node, Tensor] = {node: torch.zeros(()) for nodes in read for node in nodes}

    def add_energy(node: fx.Node, value: Tensor) -> None:
        if node in energies:
            energy = value.double().square().mean([axis for axis in range(value.ndim) if axis != 1])
            energies[node] = energies[node].to(energy) + energy

    for batch in batches:
        run_recorded(graph_module, batch, add_energy)
    return [torch.stack([energies[node] for node in nodes]).mean(0).sqrt() for nodes in read]


def _factors(sizes: Tensor, strength: float) -> Tensor:
    """Factors with geometric mean 1 over the living channels."""
    alive = sizes > DEAD * sizes.mean()
    logarithm = torch.where(alive, sizes, torch.ones_like(sizes)).log()
    centre = (logarithm * alive).sum() / alive.sum().clamp_min(1)
    factor = ((logarithm - centre) * strength).exp().clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return torch.where(alive, factor, torch.ones_like(factor))


def _weight_factors(graph_module: fx.GraphModule, group: ChannelGroup, strength: float) -> Tensor:
    """``sqrt(r1 / r2)`` of the paper's eq. 11, r the largest magnitudes of a channel's weights."""

    def largest(nodes: list[fx.Node], axis: int) -> Tensor:
        weights = [tensor_of(graph_module, WeightedLayer(node).weight) for node in nodes]
        each = [w.abs().transpose(0, axis).flatten(1).amax(1) for w in weights if w is not None]
        return torch.stack(each).amax(0).double()

    written, read = largest(group.writers, 0), largest(group.readers, 1)
    return _factors((written / read.clamp_min(torch.finfo(torch.float32).tiny)).sqrt(), strength)


def _scale(
    graph_module: fx.GraphModule, group: ChannelGroup, factor: Tensor, factors: dict[str, Tensor]
) -> None:
    for writer in map(WeightedLayer, group.writers):
        name = writer.node.name
        factors[name] = factors.get(name, torch.ones_like(factor)) * factor
        weight = present(tensor_of(graph_module, writer.weight))
        set_parameter(graph_module, writer.weight, weight / _along(factor, 0, weight))
        bias = tensor_of(graph_module, writer.bias)
        if bias is not None:
            set_parameter(graph_module, writer.bias, bias / factor.to(bias.dtype))
    for reader in map(WeightedLayer, group.readers):
        weight = present(tensor_of(graph_module, reader.weight))
        set_parameter(graph_module, reader.weight, weight * _along(factor, 1, weight))


def _along(factor: Tensor, axis: int, weight: Tensor) -> Tensor:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return factor.to(weight.dtype).reshape(shape)
