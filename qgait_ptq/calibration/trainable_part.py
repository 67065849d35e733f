"""The part of a network that gradients can train.

A gradient of a rounding step assumes that values are spread over the step. Silhouettes are binary, so whole
areas of a frame share a few values in the first layers. Where a rounding threshold passes such a value, all
of them move to another integer at once: the loss jumps, and gradients do not see it. GaitBase-small at W3A3:
raising the scale after the first layer by 3 % nearly doubles the loss, and the gradient is close to zero.

The layers that lead to such a place are not trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.training_batches import BatchSource
from qgait_ptq.graph.stored_weights import layer_name, nearest_layer
from qgait_ptq.placement.quantized_layers import activation_quantizers, quantized_layers
from qgait_ptq.quantizer.fake_quantize import FakeQuantize
from qgait_ptq.system.exchanging import first_only

CHANGES = (0.97, 1.03)  # factors of a scale, as a few steps of training change it
# Share of the loss, mean over both changes. Smooth places were seen up to 0.05, jumps from 0.05 to 0.3.
LARGEST_RISE = 0.05
FINE_BITS = 8  # steps of this width are so small that jumps do not hinder training
PROBED_BATCHES = 2


@dataclass(frozen=True)
class TrainablePart:
    """The nodes of a graph that gradients can train.

    Attributes:
        nodes: these nodes.
        layers: number of quantized layers among the nodes.
        all_layers: number of quantized layers of the graph.
        jumps: relative rise of the loss at each place where it jumps, by the name of the layer before it.
    """

    nodes: tuple[fx.Node, ...]
    layers: int
    all_layers: int
    jumps: dict[str, float]

    def describe(self, stage: str) -> str:
        """Return a line about the jumps, and the layers that a stage does not train because of them."""
        jump = f"the loss jumps behind {', '.join(self.jumps)} if a scale changes a little"
        if self.layers == self.all_layers:
            return f"{stage}: {jump}; all layers are trained"
        return f"{stage} trains {self.layers} of {self.all_layers} layers: {jump}"


def find_trainable_part(graph_module: fx.GraphModule, loss: Callable[[nn.Module], float]) -> TrainablePart:
    """Return the nodes that do not lead to a place where the loss jumps.

    If no layer is left, all are returned: the comparison at the end of training decides then. The first
    process of a run decides for all.

    Args:
        graph_module: calibrated graph.
        loss: returns the loss of a graph on some clips.
    """
    rises = first_only(lambda: find_jumps(graph_module, loss))
    nodes = list(graph_module.graph.nodes)
    places = [node for node in nodes if node.op == "call_module" and str(node.target) in rises]
    held = _leading_to(graph_module, places)
    layers = [layer.node for layer in quantized_layers(graph_module)]
    left = [layer for layer in layers if layer not in held] or layers
    if left == layers:
        held = set()
    jumps: dict[str, float] = {}
    for place in places:
        layer = nearest_layer(place)
        name = "the input" if layer is None else layer_name(layer)
        jumps[name] = max(rises[str(place.target)], jumps.get(name, 0.0))
    return TrainablePart(tuple(node for node in nodes if node not in held), len(left), len(layers), jumps)


def find_jumps(graph_module: fx.GraphModule, loss: Callable[[nn.Module], float]) -> dict[str, float]:
    """Return the relative rise of the loss at the quantizers where it jumps, by name.

    The rise is the mean over a smaller and a larger scale. A slope of the loss, which gradients do see,
    raises it on one side and lowers it on the other, and cancels in this mean. Quantizers that lead to one of
    these are not examined.

    Args:
        graph_module: calibrated graph.
        loss: returns the loss of a graph on some clips.
    """
    probed = copy.deepcopy(graph_module)
    quantizers = {
        name: quantizer
        for name, quantizer in activation_quantizers(probed, inputs=False).items()
        if quantizer.grid.bits < FINE_BITS
    }
    before = loss(probed)
    if before == 0:  # the quantizers change nothing
        return {}
    jumps: dict[str, float] = {}
    held: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        if node in held or node.op != "call_module" or str(node.target) not in quantizers:
            continue
        rise = _mean_loss(quantizers[str(node.target)], lambda: loss(probed)) / before - 1
        if rise > LARGEST_RISE:
            jumps[str(node.target)] = rise
            held |= _leading_to(graph_module, [node])
    return jumps


def _leading_to(graph_module: fx.GraphModule, places: Iterable[fx.Node]) -> set[fx.Node]:
    """Return some nodes and all nodes that lead to them."""
    leading = set(places)
    for node in reversed(graph_module.graph.nodes):
        if any(user in leading for user in node.users):
            leading.add(node)
    return leading


def anchor_loss(
    reference: nn.Module, source: BatchSource, seed: int, device: torch.device, at_once: int
) -> Callable[[nn.Module], float]:
    """Return a function that computes L_anchor of a network on a few training batches.

    Args:
        reference: the float network.
        source: source of training batches.
        seed: random seed of the batches.
        device: device of the networks.
        at_once: number of clips in one forward pass.
    """
    batches = [
        piece.to(device)
        for index in range(PROBED_BATCHES)
        for piece in source.draw(np.random.default_rng([seed, index]), index).clips.split(at_once)
    ]

    def embed(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([network(clips) for clips in batches])

    wanted = embed(reference)
    return lambda network: float(IdcLoss.anchor(embed(network), wanted))


def _mean_loss(quantizer: FakeQuantize, loss: Callable[[], float]) -> float:
    """Return the mean loss with a smaller and a larger scale."""
    scale = quantizer.scale.detach().clone()
    losses = []
    for change in CHANGES:
        quantizer.set_scale(scale * change)
        losses.append(loss())
    quantizer.set_scale(scale)
    return sum(losses) / len(losses)
