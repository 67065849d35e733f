"""Block-by-block reconstruction: each quantized block is trained to reproduce the output of its float block.

Blocks that treat each frame alone see random frames of many sequences, and the others see sequences.
Weights learn whether to round up or down (AdaRound, Nagel et al. 2020), or are trained as latent weights
through the soft quantizer. Scales of activations are trained with them. The input of a block is a random
mixture of quantized and float values, and a share of its activations stays unquantized (QDrop, Wei et al.
2022). This keeps blocks from overfitting to the errors of a few sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from qgait_ptq.calibration.blocks import Block, Granularity, find_blocks
from qgait_ptq.calibration.trained_graph import LearningRates, TrainedGraph
from qgait_ptq.calibration.training import rate_share
from qgait_ptq.errors import CalibrationError
from qgait_ptq.graph.stepping import DEFAULT_MEMORY, Stepper
from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.quantizer.soft import HARD, TemperatureSchedule
from qgait_ptq.quantizer.trainable import WeightMode, WeightTrainer
from qgait_ptq.system.invariants import of_type

SHARPNESS = (20.0, 2.0)  # β of AdaRound's regularizer at its first and its last step
REGULARIZED_FROM = 0.2  # share of the steps before the regularizer starts


@dataclass(frozen=True)
class BlockSettings:
    """Settings of block reconstruction.

    Attributes:
        steps: training steps of each block; 0 leaves blocks unchanged.
        granularity: blocks, or single layers as in AdaRound.
        weights: learned rounding, or latent weights.
        rates: learning rates.
        temperature: temperature of soft gradients.
        drop_probability: share of values that come from the float network, and of activations that pass
            unquantized.
        ranges: whether scales of activations, and biases, are trained too.
        regularizer: weight of the term that decides every weight's rounding.
        seed: random seed for batches and dropped values.
        memory: bytes of activations that each of the two networks holds; the rest goes to disk.
    """

    steps: int
    rates: LearningRates
    granularity: Granularity = Granularity.BLOCK
    weights: WeightMode = WeightMode.ROUNDING
    temperature: TemperatureSchedule = HARD
    drop_probability: float = 0.5
    ranges: bool = True
    regularizer: float = 0.01
    seed: int = 0
    memory: int = DEFAULT_MEMORY


@dataclass(frozen=True)
class BlockBatches:
    """Network inputs ``[n, s, h, w]`` in [0, 1]; each is one training batch.

    Attributes:
        sequences: clips of several frames.
        frames: clips of one frame, for blocks before the maximum over frames; none for networks in which
            frames meet before it.
        pooled: names of the nodes that depend on the maximum.
    """

    sequences: Sequence[Tensor]
    frames: Sequence[Tensor] = ()
    pooled: frozenset[str] = frozenset()

    def of(self, block: Block) -> Sequence[Tensor]:
        """Return the batches that a block is trained on."""
        alone = self.pooled.isdisjoint(node.name for node in block.nodes)
        return self.frames if self.frames and alone else self.sequences


def reconstruct_blocks(
    quantized: fx.GraphModule,
    reference: fx.GraphModule,
    batches: BlockBatches,
    magnitudes: dict[str, Tensor],
    settings: BlockSettings,
    *,
    nodes: Sequence[fx.Node] | None = None,
    done: int = 0,
    advance: Callable[[], None] = lambda: None,
    after_block: Callable[[int], None] = lambda count: None,
) -> int:
    """Train the blocks of a calibrated graph in place, in graph order.

    Args:
        quantized: calibrated graph.
        reference: the same graph with its quantizers switched off.
        batches: network inputs.
        magnitudes: see `trained_graph.output_magnitudes`.
        settings: settings of the reconstruction.
        nodes: nodes whose quantizers and layers are trained; None for all.
        done: number of blocks that a resumed run has trained already.
        advance: called after each step.
        after_block: called after each block with the number of blocks done.

    Returns:
        The number of blocks.

    Raises:
        CalibrationError: the loss of a block became NaN or infinite. The error names the layers.
    """
    blocks = find_blocks(quantized, settings.granularity)
    trained = set(quantized.graph.nodes if nodes is None else nodes)
    inputs: Sequence[Tensor] | None = None
    for index, block in enumerate(blocks):
        if index < done or trained.isdisjoint(block.layers):
            continue
        if inputs is not batches.of(block):
            inputs = batches.of(block)
            steppers = [Stepper(graph, inputs, settings.memory) for graph in (reference, quantized)]
        for stepper in steppers:
            stepper.advance(block.start)
        chosen = [node for node in block.nodes if node in trained]
        reconstruction = _Reconstruction(block, index, quantized, reference, magnitudes, settings, chosen)
        reconstruction.run(steppers[0], steppers[1], advance)
        after_block(index + 1)
    return len(blocks)


def count_blocks(
    quantized: fx.GraphModule, granularity: Granularity, nodes: Sequence[fx.Node] | None = None
) -> int:
    """Return the number of blocks that have a layer to train; see `reconstruct_blocks`."""
    trained = set(quantized.graph.nodes if nodes is None else nodes)
    return sum(not trained.isdisjoint(block.layers) for block in find_blocks(quantized, granularity))


class _Reconstruction:
    """Training of one block."""

    def __init__(
        self,
        block: Block,
        index: int,
        quantized: fx.GraphModule,
        reference: fx.GraphModule,
        magnitudes: dict[str, Tensor],
        settings: BlockSettings,
        nodes: Sequence[fx.Node],
    ) -> None:
        self.block, self.index, self.settings = block, index, settings
        self.quantized, self.reference = quantized, reference
        self.trained = TrainedGraph(
            quantized,
            reference,
            magnitudes,
            settings.weights,
            nodes,
            ranges=settings.ranges,
        )
        self.trained.set_drop_probability(settings.drop_probability)
        self.weights = [t for _, t in self.trained.trainers() if isinstance(t, WeightTrainer)]
        # The float graph has the same nodes under the same names.
        names = {node.name: node for node in reference.graph.nodes}
        self.reference_block = Block(
            *(
                tuple(names[n.name] for n in nodes)
                for nodes in (block.nodes, block.inputs, block.outputs, block.layers)
            )
        )

    def run(self, reference: Stepper, quantized: Stepper, advance: Callable[[], None]) -> None:
        """Train the block on the current values of both steppers."""
        groups = self.trained.groups(self.settings.rates)
        if not groups:
            self.trained.discard()
            return
        optimizer = torch.optim.Adam(groups)
        for step in range(self.settings.steps):
            rng = np.random.default_rng([self.settings.seed, self.index, step])
            batch = int(rng.integers(len(quantized.batches)))
            torch.manual_seed(int(rng.integers(2**31)))
            self.trained.set_temperature(self.settings.temperature.at(step, self.settings.steps))
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * rate_share(step, self.settings.steps)
            float_inputs = {n: reference.value(batch, n) for n in self.reference_block.inputs}
            inputs = {
                node: self._mix(quantized.value(batch, node), float_inputs[other])
                for node, other in zip(self.block.inputs, self.reference_block.inputs, strict=True)
            }
            with torch.no_grad():
                targets = self.reference_block.run(self.reference, float_inputs)
            loss = self._loss(inputs, targets, step)
            if not bool(torch.isfinite(loss)):
                names = ", ".join(layer_name(layer) for layer in self.block.layers)
                raise CalibrationError(
                    f"fine-tuning: the loss of the block with {names} is NaN or infinite at step {step}; "
                    "lower the learning rates in finetune, or run without --finetune"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance()
        self.trained.settle()

    def _mix(self, given: Any, wanted: Any) -> Any:
        if not isinstance(given, Tensor) or self.settings.drop_probability == 0:
            return given
        return torch.where(torch.rand_like(given) < self.settings.drop_probability, wanted, given)

    def _loss(self, inputs: Mapping[fx.Node, Any], targets: list[Tensor], step: int) -> Tensor:
        outputs = self.block.run(self.quantized, inputs)
        total: Tensor | float = 0.0
        for output, target in zip(outputs, targets, strict=True):
            if isinstance(output, Tensor):
                energy = target.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
                total = total + (output - target).square().mean() / energy
        total = of_type(total, Tensor)
        if self.settings.weights is WeightMode.ROUNDING:
            total = total + self._undecided(step)
        return total

    def _undecided(self, step: int) -> Tensor | float:
        share = step / max(1, self.settings.steps)
        if share < REGULARIZED_FROM or not self.weights:
            return 0.0
        progress = (share - REGULARIZED_FROM) / (1 - REGULARIZED_FROM)
        sharpness = SHARPNESS[0] + (SHARPNESS[1] - SHARPNESS[0]) * progress
        count = sum(weight.rounding.numel() for weight in self.weights)
        undecided = torch.stack([weight.undecided(sharpness) for weight in self.weights]).sum()
        return self.settings.regularizer * undecided / count
