"""Equalization: scale the channels between layers so that activations and weights quantize well.

Weight equalization follows Nagel et al. (*Data-Free Quantization Through Weight Equalization and Bias
Correction*, ICCV 2019). It works on groups of layers instead of pairs, so it covers residual streams. At low
activation bits, most of the error comes from activations: with one scale for a tensor, a channel with small
values has few levels. Activation equalization chooses factors from the size of the channels' values, as in
SmoothQuant (Xiao et al. 2023). The weights absorb the factors: they have a scale for each output channel and
compensated rounding.
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
DEAD = 1e-3  # share of the mean size; channels below it stay unchanged
TOLERANCE = 1e-3  # share of the largest value of an embedding
ACTIVATION_STRENGTH = 0.5
ROUNDS = 3  # a layer reads one group and writes another, so the factors need some rounds to settle


class Equalization(StrEnum):
    """Values from which the factors are computed."""

    NONE = "none"
    WEIGHTS = "weights"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class Equalized:
    """Result of equalization.

    Attributes:
        groups: number of channel groups.
        factors: divisors of the output channels, ``[c]``, by layer name.
    """

    groups: int
    factors: dict[str, Tensor]


def equalize(
    graph_module: fx.GraphModule, batches: Sequence[Tensor], kind: Equalization, strength: float | None = None
) -> Equalized:
    """Equalize the channel groups of a simplified float graph in place.

    Args:
        graph_module: graph whose shapes are recorded.
        batches: silhouettes ``[n, s, h, w]`` in [0, 1].
        kind: values from which the factors are computed.
        strength: exponent of the factors; 1 makes all channels equal. None means 1 for weights and ½ for
            activations, since the weights absorb those factors.

    Raises:
        CalibrationError: the output of the network changed.
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
    """Return the root mean square of each channel of each group, over the inputs of its readers."""
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
    """Return factors with geometric mean 1 over the channels that are not dead."""
    alive = sizes > DEAD * sizes.mean()
    logarithm = torch.where(alive, sizes, torch.ones_like(sizes)).log()
    centre = (logarithm * alive).sum() / alive.sum().clamp_min(1)
    factor = ((logarithm - centre) * strength).exp().clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return torch.where(alive, factor, torch.ones_like(factor))


def _weight_factors(graph_module: fx.GraphModule, group: ChannelGroup, strength: float) -> Tensor:
    """Return ``sqrt(r1 / r2)`` (eq. 11 of the paper), r being a channel's largest weight magnitude."""

    def largest(nodes: list[fx.Node], axis: int) -> Tensor:
        weights = [tensor_of(graph_module, WeightedLayer(node).weight) for node in nodes]
        each = [w.abs().transpose(0, axis).flatten(1).amax(1) for w in weights if w is not None]
        return torch.stack(each).amax(0).double()

    written, read = largest(group.writers, 0), largest(group.readers, 1)
    # A channel that nobody reads, or that is always zero, is dead.
    return _factors(torch.where(read > 0, (written / read).sqrt(), 0.0), strength)


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
