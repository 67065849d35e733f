"""Stage 1: inter-class distance-guided calibration (IDC).

Scales and zero-points of activations, scales of weights, and biases are trained so that distances between
people match the float network (`distances`). The integers of the weights do not change. The step with the
lowest loss on held-out identities is kept. If no step improves on stage 0, its ranges are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.trained_graph import TrainedGraph, output_magnitudes
from qgait_ptq.calibration.training import EmbeddingTraining, TrainingOutcome, TrainingSettings
from qgait_ptq.quantizer.trainable import WeightMode
from qgait_ptq.stages.training_data import TrainingData


def calibrate_distances(
    quantized: fx.GraphModule,
    reference: fx.GraphModule,
    data: TrainingData,
    loss: IdcLoss,
    settings: TrainingSettings,
    device: torch.device,
    advance: Callable[[], None] = lambda: None,
) -> TrainingOutcome:
    """Train the ranges and biases of a calibrated graph in place.

    Args:
        quantized: graph whose ranges are set.
        reference: the same graph with its quantizers switched off.
        data: clips and the float network's embeddings of them.
        loss: loss to minimise.
        settings: settings of the training.
        device: device of both graphs.
        advance: called after each step.

    Raises:
        CalibrationError: the loss is NaN or infinite before the first step.
    """
    few = torch.arange(min(len(data.clips), settings.micro_batch))
    magnitudes = output_magnitudes(quantized, data.clips.batch(few, device))
    trained = TrainedGraph(quantized, reference, magnitudes, WeightMode.SCALES)
    training = EmbeddingTraining(trained, data, loss, settings, device)
    training.run(advance)
    if training.outcome.improved:
        trained.settle()
    else:
        trained.discard()
    return training.outcome
