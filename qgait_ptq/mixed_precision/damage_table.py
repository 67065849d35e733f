"""Sensitivity of a network: what each width of each weight and input does to the ranking, alone.

Between placement and calibration, for those who choose widths; see `allocation.sensitivity`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from qgait_ptq.calibration.clips import Clips
from qgait_ptq.calibration.correction import correct_alone
from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.calibration.stages import CalibrationRun, StageListener
from qgait_ptq.capture.trace import Capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import DataError
from qgait_ptq.export.onnx_file import export_quantized
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.mixed_precision.costs import CostModel
from qgait_ptq.mixed_precision.groups import Kind, find_groups, layer_costs
from qgait_ptq.mixed_precision.sensitivity import Sensitivity, measure_sensitivity
from qgait_ptq.prepare.annotate import place
from qgait_ptq.prepare.insert import insert_quantizers
from qgait_ptq.prepare.layers import list_layers
from qgait_ptq.prepare.planning import bit_widths
from qgait_ptq.system.progress import Advance, Silent
from qgait_ptq.targets.profiles import get_target

MEASURED_SEQUENCES = 64
WIDEST = 8


@dataclass
class SensitivityMeasurement:
    """Measures one network.

    Attributes:
        config: how it is calibrated; its target decides which files are estimated.
        captured: the network's capture.
        network: the simplified, annotated float graph; it stays as it is.
        device: where it runs.
        listener: is told what runs.
        byte_input: the file takes uint8.
        sequences: to measure on, at most.
        work_folder: for the states of the measurement; None keeps none.
        resume: go on from the states found there.
    """

    config: QuantConfig
    captured: Capture
    network: fx.GraphModule
    device: torch.device
    listener: StageListener
    byte_input: bool = False
    sequences: int = MEASURED_SEQUENCES
    work_folder: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        self.target = get_target(self.config.target)
        self.groups = find_groups(insert_quantizers(self.network))

    def measure(self, data: GaitDataset, widths: Mapping[Kind, Sequence[int]]) -> Sensitivity:
        """The damage of each group at each width.

        Args:
            data: labelled sequences.
            widths: to be measured.

        Raises:
            DataError: all sequences are of one identity.
        """
        chosen = data.choose(min(self.sequences, self.config.calibration_sequences), self.config.seed)
        run = self._run()
        clips = run.cut(chosen, self.config.idc.frames)
        if len(set(clips.subjects)) < 2:
            raise DataError("the calibration set is of one identity; how people move apart takes two")
        needed = sorted({WIDEST, *widths[Kind.WEIGHTS], *widths[Kind.ACTIVATIONS]})
        layers = sum(group.kind is Kind.WEIGHTS for group in self.groups)
        with self.listener.stage("widths", len(needed) * len(chosen) + layers) as advance:
            run.listener = _Steps(advance)
            run.equalize(clips.silhouettes)
            by_width = {bits: self._calibrated(run, bits, chosen) for bits in needed}
            reference = run.float_reference(by_width[WIDEST])
            if run.corrects:
                batches = run.unlabelled_batches(clips.silhouettes)
                correct_alone(reference, list(by_width.values()), batches, run.corrections(), advance)
        states = SavedStates(
            self.work_folder, run.fingerprint(reference, clips.silhouettes) + str(widths), self.resume
        )
        size = run.clips_at_once()
        with self.listener.stage("sensitivity", -(-len(clips.subjects) // size)) as advance:
            labelled = Clips(clips.silhouettes, clips.labels)
            measurements = measure_sensitivity(
                reference,
                by_width,
                self.groups,
                widths,
                labelled,
                size,
                self.device,
                states,
                advance,
            )
        return Sensitivity(tuple(self.groups), tuple(measurements))

    def costs(self, data: GaitDataset) -> CostModel:
        """What widths cost; needs one sequence, and no measurement.

        Args:
            data: sequences.
        """
        run = self._run()
        quantized = self._calibrated(run, WIDEST, data.choose(1, self.config.seed))
        file = export_quantized(quantized, self.captured, self.target, self.byte_input)
        macs = {layer.node: layer.macs for layer in list_layers(self.network)}
        layers = layer_costs(quantized, self.groups, macs)
        return CostModel.of_file(layers, self.target.storage.int4_weights, file.ByteSize())

    def _run(self) -> CalibrationRun:
        """The calibrating stages on a copy of the network, told to nobody."""
        return CalibrationRun(self.config, self.captured, copy.deepcopy(self.network), self.device, Silent())

    def _calibrated(self, run: CalibrationRun, bits: int, chosen: GaitDataset) -> fx.GraphModule:
        """The equalized network with all quantizers at one width, ranges set."""
        uniform = self.config.model_copy(
            update={"weight_bits": bits, "activation_bits": bits, "edge_bits": bits, "layers": {}}
        )
        place(run.network, self.target.rules, bit_widths(uniform))
        return run.set_ranges(chosen)


class _Steps(Silent):
    """Passes the steps of inner stages on to one bar."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    @contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[Advance]:
        """Enter a stage."""
        yield self.advance


def describe_sensitivity(sensitivity: Sensitivity) -> list[dict[str, Any]]:
    """One entry for each group and width, as ``report.json`` and ``--json`` have it."""
    return [
        {
            "layers": list(group.layers),
            "kind": group.kind.value,
            "bits": measurement.bits,
            "distance_error": measurement.damage.distance_error,
            "rank1_drop": measurement.damage.rank1_drop,
            "sqnr_db": measurement.damage.sqnr_db,
            "distortion": measurement.damage.distortion,
        }
        for measurement in sensitivity.measurements
        for group in (sensitivity.groups[measurement.group],)
    ]
