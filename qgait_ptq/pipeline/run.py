"""One run: its stages, with what they share; `pipeline.quantize` calls them in their order."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from qgait_ptq.calibration.stages import CalibrationRun
from qgait_ptq.capture.trace import BATCH_AXIS, FRAME_AXIS, Capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sources import GaitData, as_gait_data, load_walkers
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.mixed_precision.choosing import WidthChooser
from qgait_ptq.pipeline.submodule_run import PartialNetwork, part_config, take_part
from qgait_ptq.prepare.annotate import place
from qgait_ptq.prepare.layers import integer_layers, layer_sqnr
from qgait_ptq.prepare.planning import bit_widths, plan
from qgait_ptq.runtime.sessions import ONNXRUNTIME, is_installed
from qgait_ptq.system.progress import Progress
from qgait_ptq.targets.profiles import get_target
from qgait_ptq.verification.kernel_check import check_kernels

PARITY_SEQUENCES, SQNR_SEQUENCES = 50, 8
SPEED_ROUNDS, SPEED_SECONDS = 5, 0.05


@dataclass
class Run:
    """What the stages of one run share: settings, device, and who is told."""

    config: QuantConfig
    device: torch.device
    progress: Progress
    work_folder: Path | None = None
    resume: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    sqnr: dict[str, float] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, list[float]] = field(default_factory=dict)
    allocation: dict[str, Any] = field(default_factory=dict)
    chooser: WidthChooser | None = None

    def __post_init__(self) -> None:
        self.target = get_target(self.config.target)

    @contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[Callable[[], None]]:
        """Time a stage and tell that it runs."""
        started = time.perf_counter()
        with self.progress.stage(name, steps) as advance:
            yield advance
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - started, 3)

    def note(self, text: str) -> None:
        """Say one line that the user should know."""
        self.progress.note(text)

    def prepare(self, data: Any) -> GaitData:
        """The data of the run; the synthetic walkers where there are none."""
        with self.stage("data"):
            if data is not None:
                return as_gait_data(data)
            self.progress.note("no data given: quantizing for the built-in synthetic walkers")
            return load_walkers()

    def take_part(
        self, model: nn.Module, name: str, data: GaitData, frames: int | None, output: str | None
    ) -> PartialNetwork:
        """A part of a network, for which the rest of the run is; the rest of the network stays in float."""
        self.config = part_config(self.config)
        with self.stage("capture"):
            part = take_part(model, name, data, self.device, frames, output)
        self.note(f"only {name} is captured and quantized; the rest of the network stays as it is, in float")
        return part

    def capture(
        self, model: nn.Module, data: GaitData, frames: int | None, output: str | None
    ) -> tuple[Capture, fx.GraphModule]:
        """The captured, simplified and annotated float graph."""
        with self.stage("capture"):
            captured, network, _ = plan(
                model, data.frame_shape, self.config, frames=frames, output=output, layout=data.layout
            )
            pinned = {BATCH_AXIS, FRAME_AXIS} - captured.free_axes - ({FRAME_AXIS} if frames else set())
            self.tell_pinned(captured, pinned, "its capture is right at no other")
        return captured, network

    def tell_pinned(self, captured: Capture, axes: set[int], why: str) -> None:
        """Say which sizes the file takes only."""
        for axis, name, size in (
            (BATCH_AXIS, "batch size", captured.batch),
            (FRAME_AXIS, "frame count", captured.frames),
        ):
            if axis in axes and size is not None:
                self.progress.note(f"the network is taken with a {name} of {size} only: {why}")

    def check_kernels(self, network: fx.GraphModule) -> None:
        """Try a layer of the network in the runtime on this processor, before anything is calibrated.

        Raises:
            ExportError: the runtime computes wrong integers here.
        """
        if self.runtime not in self.target.runtimes:
            return
        with self.stage("kernels"):
            check_kernels(integer_layers(network), self.runtime)

    @property
    def runtime(self) -> str:
        """Where the file is tried: its own runtime where that is at hand, else onnxruntime, in float."""
        own = [name for name in self.target.runtimes if is_installed(name)]
        return own[0] if own else ONNXRUNTIME

    def choose_widths(self, captured: Capture, network: fx.GraphModule, data: GaitData) -> None:
        """Give each layer its width, where a budget or an accuracy is asked for; the graph is placed anew."""
        if self.config.budget is None and not self.config.needs_held_out:
            return
        on_device = to_device(copy.deepcopy(network), self.device)
        chooser = WidthChooser(self.config, captured, on_device, self.device, self, self.takes_bytes(data))
        self.config, self.allocation = chooser.choose(data.calibration)
        place(network, self.target.rules, bit_widths(self.config))
        if self.config.needs_held_out:
            self.chooser = chooser

    def calibrate(self, captured: Capture, network: fx.GraphModule, data: GaitData) -> fx.GraphModule:
        """The quantized graph, calibrated."""
        stages = CalibrationRun(
            self.config,
            captured,
            to_device(network, self.device),
            self.device,
            self,
            self.work_folder,
            self.resume,
        )
        stages.accept = self._accept(data)
        quantized = stages.run(data.calibration)
        self.calibration = stages.record
        self.factors = stages.equalization_factors
        few = data.calibration.choose(SQNR_SEQUENCES, self.config.seed)
        with self.stage("layer errors", len(few)) as advance:
            self.sqnr = layer_sqnr(network, quantized, self.batches(captured, few, advance))
        return quantized

    def _accept(self, data: GaitData) -> Callable[[fx.GraphModule], bool] | None:
        """Whether a calibrated graph keeps the accuracy that was asked for."""
        chooser = self.chooser
        if chooser is None:
            return None

        def accept(quantized: fx.GraphModule) -> bool:
            drop = chooser.drop(quantized, data.calibration)
            kept = drop <= chooser.allowed_drop
            self.allocation["held_out_drop"] = drop if kept else chooser.chosen_drop
            return kept

        return accept

    def takes_bytes(self, data: GaitData) -> bool:
        """Whether the file takes silhouettes as uint8."""
        return self.config.input_type == "uint8" and self.target.byte_input and not data.raw

    def batches(
        self, captured: Capture, data: GaitDataset, advance: Callable[[], None] = lambda: None
    ) -> Iterator[Tensor]:
        """Sequences as batches of one, on the device, of at most the configured frames."""
        for silhouettes, record in data:
            yield network_batch(
                silhouettes, record, captured.frame_shape, captured.frames, self.config.calibration_frames
            ).to(self.device)
            advance()
