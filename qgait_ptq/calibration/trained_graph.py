"""A quantized graph whose quantizers are replaced by trainable modules during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from qgait_ptq.calibration.additions import align_additions, aligned_multiples
from qgait_ptq.calibration.optimizer import MATRICES
from qgait_ptq.graph.attributes import shared_parameters, tensor_of
from qgait_ptq.graph.operators import CONVOLUTIONS, is_operator
from qgait_ptq.graph.recorder import run_recorded
from qgait_ptq.graph.shapes import observed_integer
from qgait_ptq.graph.views import WeightedLayer
from qgait_ptq.placement.quantized_layers import activation_quantizers, quantized_layers, weight_of
from qgait_ptq.quantizer.fake_quantize import FakeQuantize
from qgait_ptq.quantizer.trainable import ActivationTrainer, BiasTrainer, WeightMode, WeightTrainer
from qgait_ptq.system.invariants import of_type

Snapshot = dict[str, dict[str, Tensor]]  # trained values by trainer and parameter

RATE_OF = {"log_scale": "scale", "zero_share": "scale", "shift": "bias"}  # of a trainer's parameters
LATENT = "latent"  # name of the parameter of a latent weight
COARSE_STEPS = 7  # rounding steps between zero and the largest integer of 4 bits
SMALLEST_MAGNITUDE = 0.05  # share of the layer's mean magnitude: smallest unit of a bias


@dataclass(frozen=True)
class LearningRates:
    """Step sizes of Adam, each in its parameter's unit.

    Attributes:
        scale: rate of logarithms of scales, and of zero-points as shares of the grid.
        weight: rate of latent weights and rounding variables, in rounding steps. Latent weights of more than
            4 bits move by the same share of their range as those of 4 bits: by more steps.
        bias: rate of biases, in magnitudes of the layer's output.
    """

    scale: float
    weight: float
    bias: float


def output_magnitudes(graph_module: fx.GraphModule, batch: Tensor) -> dict[str, Tensor]:
    """Return the root mean square of each layer's output by channel, ``[c]``, by node name.

    Args:
        graph_module: graph with quantizers.
        batch: silhouettes ``[n, s, h, w]`` in [0, 1].
    """
    layers = {layer.node for layer in quantized_layers(graph_module)}
    magnitudes: dict[str, Tensor] = {}

    def measure(node: fx.Node, value: Tensor) -> None:
        if node in layers:
            axis = 1 if is_operator(node, CONVOLUTIONS) else value.ndim - 1
            square = value.square().transpose(0, axis).flatten(1).mean(1)
            magnitudes[node.name] = square.clamp_min(SMALLEST_MAGNITUDE**2 * square.mean()).sqrt()

    with torch.no_grad():
        run_recorded(graph_module, batch, measure)
    return magnitudes


class TrainedGraph:
    """Replaces quantizers by trainers; `settle` writes the trained values back.

    The graph itself does not change, only the modules that it calls.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        reference: fx.GraphModule,
        magnitudes: dict[str, Tensor],
        weights: WeightMode,
        nodes: Sequence[fx.Node] | None = None,
        *,
        ranges: bool = True,
    ) -> None:
        """Replace the quantizers by trainers.

        Args:
            graph_module: calibrated graph.
            reference: the same graph with float weights.
            magnitudes: see `output_magnitudes`.
            weights: mode of training weights.
            nodes: nodes whose quantizers are trained; None trains all.
            ranges: whether scales and zero-points of activations, and biases, are trained.
        """
        self.graph_module = graph_module
        self._settled: dict[str, nn.Module] = {}
        self._float_biases: dict[str, tuple[nn.Parameter, float]] = {}  # with their magnitude
        self._channel_groups: dict[str, int] = {}  # of layers, by the name of the weight's trainer
        shared = shared_parameters(graph_module)
        within = None if nodes is None else {node.name for node in nodes}
        self._layers = [
            layer
            for layer in quantized_layers(graph_module)
            if (within is None or layer.node.name in within)
            and layer.weight_path not in shared
            and (layer.bias_path or "") not in shared
        ]
        self._train_weights(reference, weights)
        if ranges:
            self._train_biases(magnitudes)
            called = None if nodes is None else {str(node.target) for node in nodes}
            multiples = aligned_multiples(graph_module)
            for name, quantizer in activation_quantizers(graph_module, inputs=False).items():
                if called is None or name in called:
                    self._replace(name, ActivationTrainer(quantizer, multiples.get(name)))
        self._start = self.snapshot()

    def _train_weights(self, reference: fx.GraphModule, mode: WeightMode) -> None:
        originals = {layer.node.name: weight_of(reference, layer) for layer in quantized_layers(reference)}
        for layer in self._layers:
            current, original = weight_of(self.graph_module, layer), originals[layer.node.name]
            trainer = WeightTrainer(layer.weight_quantizer, current, original, mode)
            name = str(layer.weight_call.target)
            self._replace(name, trainer)
            self._channel_groups[name] = observed_integer(WeightedLayer(layer.node).groups)

    def _train_biases(self, magnitudes: dict[str, Tensor]) -> None:
        for layer in self._layers:
            bias, magnitude = tensor_of(self.graph_module, layer.bias_parameter), magnitudes[layer.node.name]
            if bias is None:
                continue
            if layer.bias_call is not None and layer.bias_quantizer is not None:
                trainer = BiasTrainer(layer.bias_quantizer, bias, magnitude)
                self._replace(str(layer.bias_call.target), trainer)
                continue
            # The bias of the layer that gives the embedding stays in float, so its parameter is trained
            # directly.
            bias = of_type(bias, nn.Parameter)
            self._float_biases[layer.bias_path or ""] = (bias, float(magnitude.mean()))
            bias.requires_grad_(True)

    def _replace(self, name: str, trainer: nn.Module) -> None:
        self._settled[name] = self.graph_module.get_submodule(name)
        setattr(self.graph_module, name, trainer)

    def __call__(self, batch: Tensor) -> Tensor:
        """Return embeddings of a batch, with gradients to all trained parameters."""
        embedding: Tensor = self.graph_module(batch)
        return embedding

    def trainers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the name and module of each trainer."""
        for name in self._settled:
            yield name, self.graph_module.get_submodule(name)

    def groups(self, rates: LearningRates) -> list[dict[str, Any]]:
        """Return the parameter groups for an optimizer, with the number of matrices of latent weights."""
        by_kind: dict[tuple[float, int], list[nn.Parameter]] = {}
        for trainer_name, trainer in self.trainers():
            for name, parameter in trainer.named_parameters():
                if not parameter.requires_grad:
                    continue
                rate, matrices = getattr(rates, RATE_OF.get(name, "weight")), 0
                if name == LATENT and isinstance(trainer, WeightTrainer):
                    rate *= max(1.0, trainer.grid.quant_max / COARSE_STEPS)
                    matrices = self._channel_groups[trainer_name]
                by_kind.setdefault((rate, matrices), []).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": parameters, "lr": rate, "full_rate": rate, **({MATRICES: count} if count else {})}
            for (rate, count), parameters in by_kind.items()
        ]
        for parameter, magnitude in self._float_biases.values():
            rate = rates.bias * magnitude
            groups.append({"params": [parameter], "lr": rate, "full_rate": rate})
        return groups

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of all soft gradients."""
        for _, trainer in self.trainers():
            if isinstance(trainer, ActivationTrainer | WeightTrainer):
                trainer.set_temperature(temperature)

    def set_drop_probability(self, probability: float) -> None:
        """Set the share of activation values that stay unquantized."""
        for _, trainer in self.trainers():
            if isinstance(trainer, ActivationTrainer):
                trainer.set_drop_probability(probability)

    def snapshot(self) -> Snapshot:
        """Return a copy of all trained parameters."""
        kept = {
            name: {key: value.detach().clone() for key, value in trainer.named_parameters()}
            for name, trainer in self.trainers()
        }
        for path, (parameter, _) in self._float_biases.items():
            kept[path] = {"": parameter.detach().clone()}
        return kept

    def restore(self, snapshot: Snapshot) -> None:
        """Restore the parameters of a snapshot."""
        with torch.no_grad():
            for name, trainer in self.trainers():
                for key, parameter in trainer.named_parameters():
                    parameter.copy_(snapshot[name][key])
            for path, (bias, _) in self._float_biases.items():
                bias.copy_(snapshot[path][""])

    def settle(self) -> None:
        """Write the trained values back and restore the quantizers."""
        for layer in self._layers:
            weight_trainer = self.graph_module.get_submodule(str(layer.weight_call.target))
            if isinstance(weight_trainer, WeightTrainer):
                weight_trainer.settle(layer.weight_quantizer, weight_of(self.graph_module, layer))
            if layer.bias_call is not None:
                bias_trainer = self.graph_module.get_submodule(str(layer.bias_call.target))
                bias = tensor_of(self.graph_module, layer.bias_parameter)
                if isinstance(bias_trainer, BiasTrainer) and bias is not None:
                    bias_trainer.settle(bias)
        for name, trainer in self.trainers():
            settled = self._settled[name]
            if isinstance(trainer, ActivationTrainer) and isinstance(settled, FakeQuantize):
                trainer.settle(settled)
        self._put_back()
        align_additions(self.graph_module)

    def discard(self) -> None:
        """Restore the quantizers as they were before training."""
        self.restore(self._start)
        self._put_back()

    def _put_back(self) -> None:
        for name, settled in self._settled.items():
            setattr(self.graph_module, name, settled)
        for parameter, _ in self._float_biases.values():
            parameter.requires_grad_(False)
        self._settled, self._float_biases = {}, {}
