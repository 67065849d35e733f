"""Stage 1: inter-class distance-guided calibration (IDC).

Scales and zero-points of activations, scales of weights, and biases are trained so that distances between
people match the float network (`distances`). The integers of the weights do not change. The network before
the stage is kept if the network after it is worse on held-out identities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.held_out import HeldOut
from qgait_ptq.calibration.trained_graph import TrainedGraph, output_magnitudes
from qgait_ptq.calibration.training import EmbeddingTraining, TrainingOutcome, TrainingSettings
from qgait_ptq.calibration.training_batches import LabelledBatches
from qgait_ptq.quantizer.trainable import WeightMode


def calibrate_distances(
    quantized: fx.GraphModule,
    reference: fx.GraphModule,
    batches: LabelledBatches,
    held_out: HeldOut,
    loss: IdcLoss,
    settings: TrainingSettings,
    advance: Callable[[], None] = lambda: None,
    nodes: Sequence[fx.Node] | None = None,
) -> TrainingOutcome:
    """Train the ranges and biases of a calibrated graph in place.

    Args:
        quantized: graph whose ranges are set.
        reference: the same graph with its quantizers switched off.
        batches: source of labelled batches.
        held_out: clips of other identities, which decide whether the trained values are kept.
        loss: loss to minimise.
        settings: settings of the training.
        advance: called after each step.
        nodes: nodes whose quantizers and layers are trained; None for all. See `trainable_part`.

    Raises:
        CalibrationError: the held-out loss is NaN or infinite before the first step.
    """
    few = torch.arange(min(len(batches.clips), settings.micro_batch))
    magnitudes = output_magnitudes(quantized, batches.clips.batch(few, held_out.device))
    trained = TrainedGraph(quantized, reference, magnitudes, WeightMode.SCALES, nodes)
    training = EmbeddingTraining(trained, reference, batches, loss, settings, held_out.device)
    training.run(advance)
    outcome = training.keep_best(held_out)
    if outcome.improved:
        trained.settle()
    else:
        trained.discard()
    return outcome
