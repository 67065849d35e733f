"""Quantizing a part of a network: its data are what the network gives it; it is judged inside the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qgait_ptq.capture.submodule import IsolatedSubmodule, isolate
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord
from qgait_ptq.gait.data.sources import GaitData
from qgait_ptq.gait.embedding import network_batch

# Choosing widths needs distances between embeddings, as the layers' own function.
NEEDS_WHOLE = ("budget", "target_accuracy", "max_drop")


@dataclass(frozen=True)
class SubmoduleNetwork:
    """A part of a network, with the data that it sees.

    Attributes:
        isolated: the part in its network, on the device.
        data: calibration and test sequences as the part is given them, float32 ``[s, ...]``.
    """

    isolated: IsolatedSubmodule
    data: GaitData

    @property
    def model(self) -> nn.Module:
        """The part as a network of its own."""
        return self.isolated.as_network

    def around(self, run: Callable[[Tensor], Tensor]) -> nn.Module:
        """The whole network with the part computed by `run`."""
        return self.isolated.around(run)

    def describe(self) -> dict[str, Any]:
        """For the report and the file."""
        return {"name": self.isolated.name, **self.isolated.shapes.describe()}


def take_submodule(
    model: nn.Module,
    name: str,
    data: GaitData,
    device: torch.device,
    frames: int | None = None,
    output: str | None = None,
) -> SubmoduleNetwork:
    """Take a part out of a network.

    Args:
        model: the network; it is left as it is.
        name: module path of the part.
        data: sequences that the network takes.
        device: where the network runs.
        frames: for networks that take one frame count only.
        output: names the embedding, for networks that give several tensors.

    Raises:
        ConfigError: the network has no such module.
        CaptureError: see `isolate`.
    """
    isolated = isolate(model, name, data.frame_shape, frames, output, data.layout)
    isolated.host.to(device)
    calibration, test = (
        GaitDataset(
            [
                replace(record, load=partial(_record, record, isolated, data.frame_shape, frames, device))
                for record in some.records
            ],
            some.description,
        )
        for some in (data.calibration, data.test)
    )
    return SubmoduleNetwork(isolated, GaitData(calibration, test, metric=data.metric))


def submodule_config(config: QuantConfig) -> QuantConfig:
    """The configuration for a part: without the stages that need the whole network's embedding.

    Raises:
        ConfigError: they are asked for.
    """
    asked = [name for name in NEEDS_WHOLE if getattr(config, name) is not None]
    asked += ["idc"] if config.idc.enabled else []
    asked += ["finetune"] if config.finetune.enabled else []
    if asked:
        raise ConfigError(
            f"{' and '.join(asked)}: not possible here. The embedding must be in the graph, and only a "
            "submodule of this network is captured. Remove these settings, or capture the whole network"
        )
    return config.model_copy(update={"idc": config.idc.model_copy(update={"enabled": False})})


def _record(
    record: SequenceRecord,
    isolated: IsolatedSubmodule,
    frame_shape: tuple[int, ...],
    frames: int | None,
    device: torch.device,
) -> NDArray[np.float32]:
    """What the part is given when the network sees one sequence."""
    batch = network_batch(record.load(), record, frame_shape, frames).to(device)
    given: NDArray[np.float32] = isolated.record(batch)[0].float().cpu().numpy()
    return given
