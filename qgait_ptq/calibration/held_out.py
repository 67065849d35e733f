"""Held-out clips, which decide between the candidates of a stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qgait_ptq.calibration.distances import IdcLoss, batch_loss
from qgait_ptq.stages.training_data import Clips
from qgait_ptq.system.exchanging import gather_rows, share_of


@dataclass(frozen=True)
class HeldOut:
    """Clips that decide which candidate is kept.

    Attributes:
        clips: clips that no stage learns from.
        embeddings: embeddings of `clips` by the float network, ``[n, c, p]`` or ``[n, c]``.
        loss: loss to compare candidates by; only its anchor counts for clips without labels.
        labelled: whether the labels of the clips are identities.
        batch: clips in one forward pass.
        device: device of the networks.
    """

    clips: Clips
    embeddings: Tensor
    loss: IdcLoss
    labelled: bool
    batch: int
    device: torch.device

    @property
    def what(self) -> str:
        """Return what the clips are, in words."""
        return "identities" if self.labelled else "sequences without labels"

    def __call__(self, network: nn.Module) -> float:
        """Return the loss of a network over all clips."""
        given = embed_clips(network, self.clips, self.batch, self.device)
        labels = self.clips.labels.to(self.device) if self.labelled else None
        with torch.no_grad():
            return float(batch_loss(self.loss, given, self.embeddings, labels))


def embed_clips(network: nn.Module, clips: Clips, size: int, device: torch.device) -> Tensor:
    """Return embeddings of all clips without gradients, on the device. Processes share the batches."""
    batches = share_of(torch.arange(len(clips)).split(size))
    with torch.no_grad():
        return gather_rows([network(clips.batch(indices, device)) for indices in batches], device)
