"""Stage 1: inter-class distance-guided calibration (IDC).

Scales and zero_points of activations, scales of weights and biases move so that distances between people stay
what they were in the float network (`distances`). The integers of the weights stay. Which step is kept is
decided on held-out identities; where none is better than the ranges of stage 0, those are kept.
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
    """Move the ranges of a calibrated graph in place.

    Args:
        quantized: ranges are set.
        reference: the same graph with its quantizers switched off.
        data: clips and the float network's embeddings of them.
        loss: what is minimised.
        settings: how long and how fast.
        device: where both graphs are.
        advance: called after each step.

    Raises:
        CalibrationError: the loss is no number before any step.
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
