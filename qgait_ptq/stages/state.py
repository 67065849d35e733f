"""The state of a run: everything that its stages have produced so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import onnx
import torch
from torch import Tensor, fx

from qgait_ptq.capture.captured import Capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import StageOrderError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.frame_pool import FramePool
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.placement.layers import LayerPlan, list_layers
from qgait_ptq.placement.submodule_data import SubmoduleNetwork
from qgait_ptq.placement.totals import Totals, count_totals
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, is_installed, run_session
from qgait_ptq.stages.training_data import TrainingData
from qgait_ptq.targets.registry import get_target
from qgait_ptq.targets.target import Target

Thing = TypeVar("Thing")
MEGABYTE = 1e6


@dataclass(frozen=True)
class Source:
    """The network that a run begins with.

    Attributes:
        model: float network of the user; it is not changed.
        frames: frame count, for networks that accept only one.
        output: name of the embedding, for networks with several outputs.
        submodule: module path of the submodule that is captured alone.
    """

    model: torch.nn.Module = field(repr=False)
    frames: int | None = None
    output: str | None = None
    submodule: str | None = None


@dataclass(frozen=True)
class File:
    """A file for a runtime.

    Attributes:
        model: quantized model.
        float_model: float network after equalization.
        session: session of the quantized model.
    """

    model: onnx.ModelProto
    float_model: onnx.ModelProto
    session: Session

    def __repr__(self) -> str:
        size, float_size = (model.ByteSize() / MEGABYTE for model in (self.model, self.float_model))
        return f"File({size:.2f} MB, float model {float_size:.2f} MB)"

    def run(self, batch: Tensor) -> Tensor:
        """Run a batch of network inputs in the runtime, and return the embeddings on the CPU."""
        return torch.from_numpy(run_session(self.session, batch.cpu().numpy()))


@dataclass(frozen=True)
class State:
    """State of a run. A stage returns a new state and leaves the old one unchanged.

    Attributes:
        source: the network before the run.
        config: settings of the run, with the chosen widths once they are chosen.
        device: device of the networks.
        given: data of the run, as the user passed them.
        data: inputs of the captured network. They differ from `given` if a submodule is captured alone.
        work_folder: folder for the states of fine-tuning; None: no states are kept.
        resume: whether to continue from the states in `work_folder`.
        submodule: submodule that is captured alone, with the network around it.
        maybe_captured: capture of the network.
        maybe_network: simplified float graph with annotations, on the device.
        maybe_chosen: calibration sequences.
        training: clips to train on and held-out clips; None if the labels do not allow training.
        maybe_unlabelled: clips for stages that need no labels, ``[n, s, h, w]``.
        maybe_pool: frames of many sequences for fine-tuning, which needs no labels.
        maybe_quantized: simulation, calibrated so far.
        maybe_reference: copy of the graph when its ranges were set, with quantizers off, so in float.
        chosen_drop: drop of held-out rank-1 by the chosen widths, in points.
        maybe_file: exported file.
        embeddings: embeddings ``[n, c, p]`` of the test sequences by network: ``float``, ``onnx`` for the
            file, and ``quantized`` for the simulation if it was evaluated.
        record: results of the stages, by section of the report.
        notes: lines for the user.
        seconds: wall time of each stage, by its name.
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
    maybe_pool: FramePool | None = None
    maybe_quantized: fx.GraphModule | None = None
    maybe_reference: fx.GraphModule | None = None
    chosen_drop: float = 0.0
    maybe_file: File | None = None
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the network, the widths, the target, and what the stages have produced so far."""
        produced = {
            "captured": self.maybe_captured,
            "network": self.maybe_network,
            "quantized": self.maybe_quantized,
            "file": self.maybe_file,
        }
        done = ", ".join(name for name, value in produced.items() if value is not None)
        widths = f"W{self.config.weight_bits}A{self.config.activation_bits}"
        return (
            f"State({type(self.source.model).__name__}, {widths} for {self.config.target}; "
            f"has {done or 'no results yet'})"
        )

    @property
    def captured(self) -> Capture:
        """Return the capture of the network."""
        return needed(self.maybe_captured, "a captured network")

    @property
    def network(self) -> fx.GraphModule:
        """Return the simplified float graph with annotations."""
        return needed(self.maybe_network, "a planned network")

    @property
    def chosen(self) -> GaitDataset:
        """Return the calibration sequences."""
        return needed(self.maybe_chosen, "a choice of sequences")

    @property
    def unlabelled(self) -> Tensor:
        """Return the clips for stages that need no labels, ``[n, s, h, w]``."""
        return needed(self.maybe_unlabelled, "a set of unlabelled clips")

    @property
    def pool(self) -> FramePool:
        """Return the frames of many sequences for fine-tuning."""
        return needed(self.maybe_pool, "a pool of frames")

    @property
    def quantized(self) -> fx.GraphModule:
        """Return the simulation, calibrated so far."""
        return needed(self.maybe_quantized, "a graph with ranges")

    @property
    def reference(self) -> fx.GraphModule:
        """Return the graph of the simulation in float."""
        return needed(self.maybe_reference, "a float reference")

    @property
    def file(self) -> File:
        """Return the exported file."""
        return needed(self.maybe_file, "a file")

    @property
    def layers(self) -> list[LayerPlan]:
        """Return the layers with weights of the float graph, with their widths and costs, in graph order.

        Multiply-accumulates are those of one sequence of 30 frames, or of the only frame count that the
        network takes.
        """
        return list_layers(self.network)

    @property
    def totals(self) -> Totals:
        """Return parameters and multiply-accumulates of the float graph, also of operators without weights.

        Multiply-accumulates are those of as many frames as for `layers`.
        """
        return count_totals(self.network)

    @property
    def target(self) -> Target:
        """Return the target of the file."""
        return get_target(self.config.target)

    @property
    def runtime(self) -> str:
        """Return the runtime that tests the file: an installed runtime of the target, else onnxruntime."""
        return self._installed_runtimes[0] if self._installed_runtimes else ONNXRUNTIME

    @property
    def other_runtimes(self) -> list[str]:
        """Return the installed runtimes of the target besides the one that tests the file."""
        return self._installed_runtimes[1:]

    @property
    def _installed_runtimes(self) -> list[str]:
        return [name for name in self.target.runtimes if is_installed(name)]

    @property
    def takes_bytes(self) -> bool:
        """Return whether the file takes silhouettes as uint8."""
        return self.config.input_type == "uint8" and self.target.byte_input and not self.data.raw

    def recording(self, **entries: Any) -> State:
        """Return the state with more entries in its record."""
        return replace(self, record={**self.record, **entries})

    def noting(self, *texts: str) -> State:
        """Return the state with more notes."""
        return replace(self, notes=(*self.notes, *texts))

    def timed(self, seconds: Mapping[str, float]) -> State:
        """Return the state with times of stages in seconds, added to their earlier times."""
        total = {name: round(self.seconds.get(name, 0.0) + taken, 3) for name, taken in seconds.items()}
        return replace(self, seconds={**self.seconds, **total})


def needed(thing: Thing | None, what: str) -> Thing:
    """Return a value that an earlier stage must have set.

    Args:
        thing: field of a state; None if it is not set.
        what: name of the field in the error.

    Raises:
        StageOrderError: no earlier stage has set the value.
    """
    if thing is None:
        raise StageOrderError(f"{what} is missing: no earlier stage produced it; run the stages in order")
    return thing
