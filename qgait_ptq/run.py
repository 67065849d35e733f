"""One run: its stages, with what they share; `pipeline.quantize` calls them in their order."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn

from qgait_ptq.config import QuantConfig
from qgait_ptq.errors import ExportError
from qgait_ptq.export.checks import (
    Parity,
    Simulation,
    compare_with_simulation,
    find_failing_axes,
    layers_without_integer_kernel,
)
from qgait_ptq.export.first_layer_table import LARGEST_KERNEL, layers_in_tables
from qgait_ptq.export.onnx_file import export_quantized
from qgait_ptq.export.targets import get_target
from qgait_ptq.gait.dataset import GaitDataset
from qgait_ptq.gait.embedding import Embed, embed_dataset, network_batch
from qgait_ptq.gait.sources import GaitData, as_gait_data, load_walkers
from qgait_ptq.graph.conversion import to_device
from qgait_ptq.graph.layers import layer_sqnr, list_layers
from qgait_ptq.graph.placement import place
from qgait_ptq.graph.trace import BATCH_AXIS, FRAME_AXIS, Capture
from qgait_ptq.mixed_precision import WidthChooser
from qgait_ptq.partial import PartialNetwork, part_config, take_part
from qgait_ptq.planning import REPORTED_FRAMES, bit_widths, plan
from qgait_ptq.progress import Progress
from qgait_ptq.runtime.benchmark import QUIET_ENOUGH, compare_speed
from qgait_ptq.runtime.sessions import (
    ONNXRUNTIME,
    Session,
    as_session_inputs,
    is_installed,
    open_session,
    run_session,
)
from qgait_ptq.runtime.streaming import can_stream
from qgait_ptq.runtime.workload import Setting
from qgait_ptq.stages import CalibrationRun

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
            self._tell_pinned(captured, pinned, "its capture is right at no other")
        return captured, network

    def _tell_pinned(self, captured: Capture, axes: set[int], why: str) -> None:
        """Say which sizes the file takes only."""
        for axis, name, size in (
            (BATCH_AXIS, "batch size", captured.batch),
            (FRAME_AXIS, "frame count", captured.frames),
        ):
            if axis in axes and size is not None:
                self.progress.note(f"the network is taken with a {name} of {size} only: {why}")

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
            self.sqnr = layer_sqnr(network, quantized, self._batches(captured, few, advance))
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

    def export(
        self, captured: Capture, quantized: fx.GraphModule, data: GaitData
    ) -> tuple[Capture, onnx.ModelProto, Session]:
        """The model for the runtime, right at every size that it declares; what it is not is pinned.

        Raises:
            ExportError: it is wrong even where batch size and frame count are fixed.
        """
        with self.stage("export"):
            simulation = Simulation.of(quantized, self.device)
            for _ in range(3):  # as captured, then with one and with both dimensions pinned
                model = export_quantized(quantized, captured, self.target, self.takes_bytes(data))
                session = open_session(model.SerializeToString(), self.runtime, spinning=False)
                failing = find_failing_axes(
                    partial(run_session, session),
                    simulation,
                    self._clips(captured, data),
                    captured.sizes,
                    self.config.minimum_parity,
                )
                if not failing:
                    self._tell_tables(model)
                    return captured, model, session
                wrong = failing & captured.free_axes
                wrong = {FRAME_AXIS} & wrong or wrong
                if not wrong:
                    break
                captured = captured.pin(wrong)
                self._tell_pinned(captured, wrong, "the file would be wrong at another")
        raise ExportError("the file differs from the simulation even where its batch and frames are fixed")

    def _tell_tables(self, model: onnx.ModelProto) -> None:
        """Say where a bit was spared for nothing."""
        wanted = self.config.input_bits == 1 and self.target.storage.first_layer_table
        if wanted and not layers_in_tables(model.graph):
            self.note(
                "input_bits is 1, but no layer is looked up in a table: none that reads the input is a "
                f"convolution of one channel with at most {LARGEST_KERNEL} values (3×3)"
            )

    @property
    def runtime(self) -> str:
        """Where the file is tried: its own runtime where that is at hand, else onnxruntime, in float."""
        own = [name for name in self.target.runtimes if is_installed(name)]
        return own[0] if own else ONNXRUNTIME

    def takes_bytes(self, data: GaitData) -> bool:
        """Whether the file takes silhouettes as uint8."""
        return self.config.input_type == "uint8" and self.target.byte_input and not data.raw

    def streams(self, captured: Capture, model: onnx.ModelProto, session: Session, data: GaitData) -> bool:
        """Whether the file gives the same for a sequence in pieces."""
        if ONNXRUNTIME not in self.target.runtimes or captured.frames is not None:
            return False
        clips = self._clips(captured, data).numpy()
        return can_stream(model, as_session_inputs(clips, session.inputs))

    def _clips(self, captured: Capture, data: GaitData) -> Tensor:
        """Test sequences as a batch ``[n, s, h, w]`` of the largest sizes that captures are checked at."""
        batch, frames = (max(sizes) for sizes in zip(*captured.sizes, strict=True))
        chosen = data.test.choose(batch, self.config.seed)
        clips = [
            network_batch(silhouettes, record, captured.frame_shape, frames) for silhouettes, record in chosen
        ]
        return torch.cat([clips[index % len(clips)] for index in range(batch)])

    def check(
        self,
        captured: Capture,
        quantized: fx.GraphModule,
        model: onnx.ModelProto,
        session: Session,
        data: GaitData,
    ) -> tuple[Parity, list[str]]:
        """Parity with the simulation, and the layers that the runtime does not run on integers."""
        chosen = data.test.choose(PARITY_SEQUENCES, self.config.seed)
        with self.stage("parity", len(chosen)) as advance:
            parity = compare_with_simulation(
                partial(run_session, session),
                Simulation.of(quantized, self.device),
                self._batches(captured, chosen, advance),
                self.config.minimum_parity,
            )
            integer = [layer.name for layer in list_layers(quantized) if layer.integer]
            look = ONNXRUNTIME in self.target.runtimes
            slow = layers_without_integer_kernel(model.SerializeToString(), integer) if look else []
        if parity.single_cosine_min < 1:
            self.note(
                f"this network amplifies rounding: file and simulation agree by a cosine of "
                f"{parity.cosine_min:.4f} at worst, the simulation in float32 and in float64 by "
                f"{parity.single_cosine_min:.4f}"
            )
        if slow:
            self.progress.note(f"no integer kernel in the runtime for: {', '.join(slow)}")
        return parity, slow

    def check_budget(self, model: onnx.ModelProto) -> None:
        """The file is as small as was asked for.

        Raises:
            ExportError: it is not: sizes were estimated too low.
        """
        limit = self.config.budget.size_mb if self.config.budget else None
        if limit is not None and model.ByteSize() > limit * 1e6:
            raise ExportError(
                f"the file has {model.ByteSize() / 1e6:.4f} MB, more than the budget of {limit:g} MB and "
                "more than estimated; ask for a slightly smaller file"
            )

    def measure_speed(self, float_model: onnx.ModelProto, model: onnx.ModelProto) -> dict[str, Any]:
        """A short look; `qgait-ptq bench` looks longer."""
        if self.runtime not in self.target.runtimes:
            return {}
        setting = Setting(self.runtime, frames=REPORTED_FRAMES, rounds=SPEED_ROUNDS, seconds=SPEED_SECONDS)
        with self.stage("speed"):
            reference, own = compare_speed(
                [float_model.SerializeToString(), model.SerializeToString()], setting
            )
        return {
            "runtime": self.runtime,
            "threads": setting.threads,
            "frames": setting.frames,
            "float_ms": reference.cpu_ms[0],
            "onnx_ms": own.cpu_ms[0],
            "faster": list(own.faster),
            "noisy": own.noisy_rounds > QUIET_ENOUGH,
        }

    def embed(
        self,
        network: fx.GraphModule,
        quantized: fx.GraphModule,
        session: Session,
        data: GaitData,
        frames: int | None,
        part: PartialNetwork | None = None,
    ) -> list[Tensor]:
        """Embeddings of the test sequences: of the float network, of the simulation, of the file.

        Those of the whole network, where only a part of it is captured.
        """
        runs: list[Embed] = [
            network,
            quantized,
            lambda batch: torch.from_numpy(run_session(session, batch.cpu().numpy())).to(self.device),
        ]
        if part is not None:
            runs = [part.isolated.host, *(part.around(run) for run in runs[1:])]
        with self.stage("evaluation", len(data.test)) as advance:
            return embed_dataset(
                data.test,
                [partial(_embed_on, self.device, run) for run in runs],
                data.frame_shape,
                frames,
                advance,
            )

    def _batches(
        self, captured: Capture, data: GaitDataset, advance: Callable[[], None] = lambda: None
    ) -> Iterator[Tensor]:
        """Sequences as batches of one, on the device, of at most the configured frames."""
        for silhouettes, record in data:
            yield network_batch(
                silhouettes, record, captured.frame_shape, captured.frames, self.config.calibration_frames
            ).to(self.device)
            advance()


def _embed_on(device: torch.device, run: Embed, batch: Tensor) -> Tensor:
    return run(batch.to(device))
