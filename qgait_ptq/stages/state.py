"""The state of a run: everything that its stages have given so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import onnx
import torch
from torch import Tensor, fx

from qgait_ptq.capture.trace import Capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import StageOrderError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sources import GaitData
from qgait_ptq.placement.layers import LayerPlan, list_layers
from qgait_ptq.placement.submodule_data import SubmoduleNetwork
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, is_installed, run_session
from qgait_ptq.stages.training_data import TrainingData
from qgait_ptq.targets.registry import get_target
from qgait_ptq.targets.target import Target

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Source:
    """The network that a run begins with.

    Attributes:
        model: as the user has it; it is left as it is.
        frames: for networks that take one frame count only.
        output: names the embedding, for networks that give several tensors.
        submodule: module path of the part that is captured alone.
    """

    model: torch.nn.Module
    frames: int | None = None
    output: str | None = None
    submodule: str | None = None


@dataclass(frozen=True)
class File:
    """A file for a runtime.

    Attributes:
        model: quantized.
        float_model: of the network before, equalized.
        session: of the quantized one.
    """

    model: onnx.ModelProto
    float_model: onnx.ModelProto
    session: Session

    def run(self, batch: Tensor) -> Tensor:
        """Run a batch of network inputs in the runtime, and return the embeddings on the CPU."""
        return torch.from_numpy(run_session(self.session, batch.cpu().numpy()))


@dataclass(frozen=True)
class State:
    """State of a run. A stage returns a new state and leaves the old one unchanged.

    Attributes:
        source: the network, as given.
        config: the settings; where widths were chosen, with them.
        device: where networks run.
        given: the data as they were given.
        data: as the captured network sees them; others than `given` where a submodule is captured alone.
        work_folder: for the states of fine-tuning; None keeps none.
        resume: go on from the states found there.
        submodule: the part that is captured alone, in its network.
        maybe_captured: the network's capture.
        maybe_network: the simplified and annotated float graph, on the device.
        maybe_chosen: sequences that calibrate.
        training: clips to learn from and to choose by; None where labels do not allow it.
        maybe_unlabelled: clips for what needs no labels, ``[n, s, h, w]``.
        maybe_quantized: the graph with its quantizers, calibrated so far.
        maybe_reference: the same graph as its ranges were set, with its quantizers switched off: float.
        chosen_drop: points of held-out rank-1 that chosen widths cost, where widths were chosen.
        maybe_file: what was exported.
        embeddings: of the test sequences: by the float network, by the simulation and by the file.
        record: what the stages did and found, for the report, by part of it.
        notes: lines that the user should know.
        seconds: stage → wall time.
    """

    source: Source
    config: QuantConfig
    device: torch.device
    given: GaitData
    data: GaitData
    work_folder: Path | None = None
    resume: bool = False
    submodule: SubmoduleNetwork | None = None
    maybe_captured: Capture | None = None
    maybe_network: fx.GraphModule | None = None
    maybe_chosen: GaitDataset | None = None
    training: TrainingData | None = None
    maybe_unlabelled: Tensor | None = None
    maybe_quantized: fx.GraphModule | None = None
    maybe_reference: fx.GraphModule | None = None
    chosen_drop: float = 0.0
    maybe_file: File | None = None
    embeddings: tuple[Tensor, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def captured(self) -> Capture:
        """The network's capture."""
        return needed(self.maybe_captured, "a captured network")

    @property
    def network(self) -> fx.GraphModule:
        """The simplified and annotated float graph."""
        return needed(self.maybe_network, "a planned network")

    @property
    def chosen(self) -> GaitDataset:
        """Sequences that calibrate."""
        return needed(self.maybe_chosen, "a choice of sequences")

    @property
    def unlabelled(self) -> Tensor:
        """Clips for what needs no labels, ``[n, s, h, w]``."""
        return needed(self.maybe_unlabelled, "a set of unlabelled clips")

    @property
    def quantized(self) -> fx.GraphModule:
        """The simulation: the graph with its quantizers, calibrated so far."""
        return needed(self.maybe_quantized, "a graph with ranges")

    @property
    def reference(self) -> fx.GraphModule:
        """The same graph in float."""
        return needed(self.maybe_reference, "a float reference")

    @property
    def file(self) -> File:
        """The exported file."""
        return needed(self.maybe_file, "a file")

    @property
    def layers(self) -> list[LayerPlan]:
        """Return the weighted layers of the float graph with their widths and costs, in graph order.

        Multiply-accumulates are those of one sequence of 30 frames, or of the only frame count that the
        network takes.
        """
        return list_layers(self.network)

    @property
    def target(self) -> Target:
        """Target of the file."""
        return get_target(self.config.target)

    @property
    def runtime(self) -> str:
        """Where the file is tried: its own runtime where that is at hand, else onnxruntime, in float."""
        own = [name for name in self.target.runtimes if is_installed(name)]
        return own[0] if own else ONNXRUNTIME

    @property
    def takes_bytes(self) -> bool:
        """Whether the file takes silhouettes as uint8."""
        return self.config.input_type == "uint8" and self.target.byte_input and not self.data.raw

    def recording(self, **entries: Any) -> State:
        """The state with more in its record."""
        return replace(self, record={**self.record, **entries})

    def noting(self, *texts: str) -> State:
        """The state with more notes."""
        return replace(self, notes=(*self.notes, *texts))

    def timed(self, seconds: Mapping[str, float]) -> State:
        """The state with the times of stages, added to what they took before."""
        total = {name: round(self.seconds.get(name, 0.0) + taken, 3) for name, taken in seconds.items()}
        return replace(self, seconds={**self.seconds, **total})


def needed(thing: Thing | None, what: str) -> Thing:
    """Return what an earlier stage gives.

    Args:
        thing: a field of a state.
        what: its name.

    Raises:
        StageOrderError: no stage before gave it.
    """
    if thing is None:
        raise StageOrderError(f"{what} is needed here, and no stage before gave it; keep the stages' order")
    return thing
