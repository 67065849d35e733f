"""The stages behind calibration: the file for a runtime, and what it is worth there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, fx

from qgait_ptq.capture.trace import FRAME_AXIS, Capture
from qgait_ptq.errors import ExportError
from qgait_ptq.evaluation.benchmark import QUIET_ENOUGH, compare_speed
from qgait_ptq.evaluation.workload import Setting
from qgait_ptq.export.onnx_file import export_quantized
from qgait_ptq.export.passes.first_layer_table import LARGEST_KERNEL, layers_in_tables
from qgait_ptq.gait.data.sources import GaitData
from qgait_ptq.gait.embedding import Embed, embed_dataset, network_batch
from qgait_ptq.pipeline.run import Run
from qgait_ptq.pipeline.submodule_run import PartialNetwork
from qgait_ptq.prepare.layers import list_layers
from qgait_ptq.prepare.planning import REPORTED_FRAMES
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.exactness import describe_processor
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session, as_session_inputs, run_session
from qgait_ptq.runtime.streaming import can_stream
from qgait_ptq.verification.file_bytes import compare_with_reference, name_inputs
from qgait_ptq.verification.parity import (
    Parity,
    Simulation,
    compare_with_simulation,
    find_failing_axes,
    layers_without_integer_kernel,
)
from qgait_ptq.verification.recording import record

PARITY_SEQUENCES = 50
SPEED_ROUNDS, SPEED_SECONDS = 5, 0.05


@dataclass
class FileRun:
    """What these stages share.

    Attributes:
        run: the settings, and who is told.
        captured: of the network; a dimension that the file would be wrong at is pinned by `export`.
        quantized: the calibrated graph.
        data: as the captured network sees them.
    """

    run: Run
    captured: Capture
    quantized: fx.GraphModule
    data: GaitData

    def export(self) -> tuple[onnx.ModelProto, Session]:
        """The model for the runtime, right at every size that it declares; what it is not is pinned.

        Raises:
            ExportError: it is wrong even where batch size and frame count are fixed.
        """
        run = self.run
        with run.stage("export"):
            simulation = Simulation.of(self.quantized, self.run.device)
            for _ in range(3):  # as captured, then with one and with both dimensions pinned
                model = export_quantized(
                    self.quantized, self.captured, run.target, run.takes_bytes(self.data)
                )
                session = open_session(model.SerializeToString(), self.runtime, spinning=False)
                failing = find_failing_axes(
                    partial(run_session, session),
                    simulation,
                    self._clips(),
                    self.captured.sizes,
                    run.config.minimum_parity,
                )
                if not failing:
                    self._tell_tables(model)
                    return model, session
                self._refuse_wrong_kernels(model, session)
                wrong = failing & self.captured.free_axes
                wrong = {FRAME_AXIS} & wrong or wrong
                if not wrong:
                    break
                self.captured = self.captured.pin(wrong)
                run.tell_pinned(self.captured, wrong, "the file would be wrong at another")
        raise ExportError("the file differs from the simulation even where its batch and frames are fixed")

    def _refuse_wrong_kernels(self, model: onnx.ModelProto, session: Session) -> None:
        """Name the layer whose integers onnxruntime computes wrong: no size of the input is to blame then.

        Raises:
            ExportError: there is one.
        """
        if self.runtime != ONNXRUNTIME or ONNXRUNTIME not in self.run.target.runtimes:
            return
        inputs = as_session_inputs(self._clips()[:1].numpy(), session.inputs)
        feeds = [name_inputs(model, inputs)]
        verification = compare_with_reference(model, feeds, record(model, feeds))
        wrong = next((tensor for tensor in verification.tensors if tensor.differing), None)
        if wrong is not None:
            raise ExportError(
                f"onnxruntime {onnxruntime.__version__} computes wrong integers on this processor, "
                f"{describe_processor()}: {wrong.differing} of {wrong.values} bytes of {wrong.node} "
                f"({wrong.operator}) differ from the exact sums; use another version of onnxruntime"
            )

    def _tell_tables(self, model: onnx.ModelProto) -> None:
        """Say where a bit was spared for nothing."""
        wanted = self.run.config.input_bits == 1 and self.run.target.storage.first_layer_table
        if wanted and not layers_in_tables(model.graph):
            self.run.note(
                "input_bits is 1, but no layer is looked up in a table: none that reads the input is a "
                f"convolution of one channel with at most {LARGEST_KERNEL} values (3×3)"
            )

    @property
    def runtime(self) -> str:
        """Where the file is tried: its own runtime where that is at hand, else onnxruntime, in float."""
        return self.run.runtime

    def streams(self, model: onnx.ModelProto, session: Session) -> bool:
        """Whether the file gives the same for a sequence in pieces."""
        if ONNXRUNTIME not in self.run.target.runtimes or self.captured.frames is not None:
            return False
        clips = self._clips().numpy()
        return can_stream(model, as_session_inputs(clips, session.inputs))

    def _clips(self) -> Tensor:
        """Test sequences as a batch ``[n, s, h, w]`` of the largest sizes that captures are checked at."""
        batch, frames = (max(sizes) for sizes in zip(*self.captured.sizes, strict=True))
        chosen = self.data.test.choose(batch, self.run.config.seed)
        clips = [
            network_batch(silhouettes, record, self.captured.frame_shape, frames)
            for silhouettes, record in chosen
        ]
        return torch.cat([clips[index % len(clips)] for index in range(batch)])

    def check(self, model: onnx.ModelProto, session: Session) -> tuple[Parity, list[str]]:
        """Parity with the simulation, and the layers that the runtime does not run on integers."""
        chosen = self.data.test.choose(PARITY_SEQUENCES, self.run.config.seed)
        with self.run.stage("parity", len(chosen)) as advance:
            parity = compare_with_simulation(
                partial(run_session, session),
                Simulation.of(self.quantized, self.run.device),
                self.run.batches(self.captured, chosen, advance),
                self.run.config.minimum_parity,
            )
            integer = [layer.name for layer in list_layers(self.quantized) if layer.integer]
            look = ONNXRUNTIME in self.run.target.runtimes
            slow = layers_without_integer_kernel(model.SerializeToString(), integer) if look else []
        if parity.single_cosine_min < 1:
            self.run.note(
                f"this network amplifies rounding: file and simulation agree by a cosine of "
                f"{parity.cosine_min:.4f} at worst, the simulation in float32 and in float64 by "
                f"{parity.single_cosine_min:.4f}"
            )
        if slow:
            self.run.progress.note(f"no integer kernel in the runtime for: {', '.join(slow)}")
        return parity, slow

    def check_budget(self, model: onnx.ModelProto) -> None:
        """The file is as small as was asked for.

        Raises:
            ExportError: it is not: sizes were estimated too low.
        """
        limit = self.run.config.budget.size_mb if self.run.config.budget else None
        if limit is not None and model.ByteSize() > limit * 1e6:
            raise ExportError(
                f"the file has {model.ByteSize() / 1e6:.4f} MB, more than the budget of {limit:g} MB and "
                "more than estimated; ask for a slightly smaller file"
            )

    def measure_speed(self, float_model: onnx.ModelProto, model: onnx.ModelProto) -> dict[str, Any]:
        """A short look; `qgait-ptq bench` looks longer."""
        if self.runtime not in self.run.target.runtimes:
            return {}
        setting = Setting(self.runtime, frames=REPORTED_FRAMES, rounds=SPEED_ROUNDS, seconds=SPEED_SECONDS)
        with self.run.stage("speed"):
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
            self.quantized,
            lambda batch: torch.from_numpy(run_session(session, batch.cpu().numpy())).to(self.run.device),
        ]
        if part is not None:
            runs = [part.isolated.host, *(part.around(run) for run in runs[1:])]
        with self.run.stage("evaluation", len(data.test)) as advance:
            return embed_dataset(
                data.test,
                [partial(_embed_on, self.run.device, run) for run in runs],
                data.frame_shape,
                frames,
                advance,
            )


def _embed_on(device: torch.device, run: Embed, batch: Tensor) -> Tensor:
    return run(batch.to(device))
