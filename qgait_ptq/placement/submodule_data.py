"""Data of a submodule: the inputs that it gets inside the network."""

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
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.graph.frame_counts import FrameCounts

# Settings that need embeddings in the captured graph, which a submodule does not have.
NEEDS_WHOLE = ("budget", "target_accuracy", "max_drop")


@dataclass(frozen=True)
class SubmoduleNetwork:
    """A submodule of a network, with its data.

    Attributes:
        isolated: submodule in its network, on the device.
        data: calibration and test inputs of the submodule, float32 ``[s, ...]``.
    """

    isolated: IsolatedSubmodule
    data: GaitData

    @property
    def model(self) -> nn.Module:
        """Submodule as a network of its own."""
        return self.isolated.as_network

    def around(self, run: Callable[[Tensor], Tensor], counts: FrameCounts) -> nn.Module:
        """Return the whole network with the submodule computed by `run`, which takes some frame counts."""
        return self.isolated.around(run, counts)

    def describe(self) -> dict[str, Any]:
        """Return the entry for the report and the file."""
        return {"name": self.isolated.name, **self.isolated.shapes.describe()}


def take_submodule(
    model: nn.Module,
    name: str,
    data: GaitData,
    device: torch.device,
    frames: int | None = None,
    output: str | None = None,
) -> SubmoduleNetwork:
    """Take a submodule out of a network.

    Args:
        model: network, which is not changed.
        name: module path of the submodule.
        data: sequences for the network.
        device: device of the network.
        frames: fixed frame count; None if the network takes several.
        output: name of the embedding, for networks with several outputs.

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
    """Return the configuration for a submodule, without the stages that need embeddings.

    Raises:
        ConfigError: the configuration requests such a stage.
    """
    asked = [name for name in NEEDS_WHOLE if getattr(config, name) is not None]
    asked += ["idc"] if config.idc.enabled else []
    asked += ["finetune"] if config.finetune.enabled else []
    if asked:
        raise ConfigError(
            f"{' and '.join(asked)}: not possible here. Only a submodule is captured, and its graph has no "
            "embedding. Remove these settings, or capture the whole network"
        )
    return config.model_copy(update={"idc": config.idc.model_copy(update={"enabled": False})})


def _record(
    record: SequenceRecord,
    isolated: IsolatedSubmodule,
    frame_shape: tuple[int, ...],
    frames: int | None,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the input of the submodule for one sequence of the network."""
    batch = network_batch(record.load(), record, frame_shape, frames).to(device)
    part_input: NDArray[np.float32] = isolated.record(batch)[0].float().cpu().numpy()
    return part_input
