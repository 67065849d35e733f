"""Measuring the sensitivity of a network to each width of each weight and input.

It is measured between placement and calibration; see `mixed_precision.sensitivity`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import fx

from qgait_ptq.calibration.batches import clip_notes, clips_at_once, cut, unlabelled_batches
from qgait_ptq.calibration.correction import correct_alone
from qgait_ptq.calibration.learning_stages import fingerprint
from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.calibration.stages import (
    Correct,
    Equalize,
    SetRanges,
    correction_settings,
    shared_weight_notes,
)
from qgait_ptq.config.schema import LayerBits
from qgait_ptq.errors import DataError
from qgait_ptq.exporters.onnx_file import export_quantized
from qgait_ptq.gait.data.clips import SMALLEST_SEQUENCES
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.mixed_precision.costs import CostModel
from qgait_ptq.mixed_precision.groups import Kind, WidthGroup, find_groups, layer_costs, own_widths
from qgait_ptq.mixed_precision.metadata_size import metadata_bytes
from qgait_ptq.mixed_precision.sensitivity import Sensitivity, measure_sensitivity
from qgait_ptq.placement.annotate import annotate
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.planning import bit_widths
from qgait_ptq.stages.lookups import checked_lookups
from qgait_ptq.stages.stage import nothing
from qgait_ptq.stages.state import State
from qgait_ptq.stages.training_data import Clips
from qgait_ptq.system.device import exact_arithmetic
from qgait_ptq.system.progress import Advance, Progress

MEASURED_SEQUENCES = 64
WIDEST = 8


@dataclass(frozen=True)
class SensitivityMeasurement:
    """Measures the sensitivity of one network.

    Attributes:
        state: prepared state, with the target of estimated files and the folder for saved measurements.
        progress: receiver of progress messages.
        sequences: largest number of sequences to measure on.
    """

    state: State
    progress: Progress
    sequences: int = MEASURED_SEQUENCES

    @cached_property
    def groups(self) -> list[WidthGroup]:
        """Weights and inputs that have one width each."""
        return find_groups(insert_quantizers(_uniform_network(self.state, WIDEST, apart=True)))

    @exact_arithmetic()
    @checked_lookups("sensitivity")
    def measure(self, widths: Mapping[Kind, Sequence[int]]) -> Sensitivity:
        """Measure the damage of each group at each width.

        Args:
            widths: widths to measure, by kind of group.

        Raises:
            DataError: all sequences have the same identity.
        """
        state, config = self.state, self.state.config
        chosen = state.data.calibration.choose(self.sequences, config.seed, together=SMALLEST_SEQUENCES)
        clips = cut(state, chosen, config.idc.frames)
        if len(set(clips.subjects)) < 2:
            raise DataError(f"sensitivity needs at least two identities; found {len(set(clips.subjects))}")
        all_widths = sorted({WIDEST, *widths[Kind.WEIGHTS], *widths[Kind.ACTIVATIONS]})
        layers = sum(group.kind is Kind.WEIGHTS for group in self.groups)
        with self.progress.stage("widths", len(all_widths) * len(chosen) + layers) as advance:
            state = Equalize().apply(replace(state, maybe_chosen=chosen, maybe_unlabelled=clips.silhouettes))
            ranged = {bits: with_uniform_ranges(state, bits, advance, apart=True) for bits in all_widths}
            notes = [*clip_notes(clips), *ranged[WIDEST].notes[len(self.state.notes) :]]
            by_width = {bits: one.quantized for bits, one in ranged.items()}
            reference = ranged[WIDEST].reference
            if Correct().wanted(state):
                batches, settings = unlabelled_batches(state), correction_settings(config)
                left_alone = correct_alone(reference, list(by_width.values()), batches, settings, advance)
                notes += shared_weight_notes(left_alone)
        states = SavedStates(state.work_folder, fingerprint(state) + str(widths), state.resume)
        size = clips_at_once(state)
        with self.progress.stage("sensitivity", -(-len(clips.subjects) // size)) as advance:
            labelled = Clips(clips.silhouettes, clips.labels)
            measurements = measure_sensitivity(
                reference,
                by_width,
                self.groups,
                widths,
                labelled,
                size,
                state.device,
                states,
                advance,
                state.data.metric,
            )
        return Sensitivity(tuple(self.groups), tuple(measurements), tuple(notes))

    def costs(self) -> CostModel:
        """Return the cost model of widths. It needs one sequence and no measurement.

        Inputs have the configured widths: fewer than 8 bits need nodes that are part of the file.
        """
        state = self.state
        all_weights = {**state.config.layers, ALL_LAYERS: LayerBits(weight_bits=WIDEST)}
        widths = bit_widths(state.config.model_copy(update={"layers": all_weights}), raw=state.data.raw)
        network = annotate(copy.deepcopy(state.network), state.target.rules, widths)
        one = replace(state, maybe_chosen=self._one_that_is_taken())
        quantized = SetRanges().apply(replace(one, maybe_network=network)).quantized
        captured = state.captured
        file = export_quantized(quantized, captured, state.target, state.takes_bytes)
        macs = {layer.node: layer.macs for layer in state.layers}
        layers = layer_costs(quantized, self.groups, macs)
        int4_weights = state.target.storage.int4_weights
        return CostModel.of_file(layers, int4_weights, file.ByteSize(), self.metadata_bytes())

    def metadata_bytes(self) -> int:
        """Return the bytes of the metadata in a file with a width for each layer, slightly overestimated."""
        config = self.state.config
        layers = {**config.layers, **own_widths(self.groups, [WIDEST] * len(self.groups))}
        return metadata_bytes(self.state, config.model_copy(update={"layers": layers}))

    def _one_that_is_taken(self) -> GaitDataset:
        """Return a sequence of a length that the network takes; any one if all that are tried are not."""
        some = self.state.data.calibration.choose(self.sequences, self.state.config.seed)
        fits = self.state.captured.frame_counts.fits
        taken = (record for silhouettes, record in some if fits(len(silhouettes)))
        return GaitDataset([next(taken, some.records[0])], layout=some.layout)


ALL_LAYERS = "?*"  # a pattern that no recipe has, so that it is the last one, which wins


def with_uniform_ranges(state: State, bits: int, advance: Advance = nothing, *, apart: bool = False) -> State:
    """Return the state with all quantizers at one width and their ranges set; `apart` as in `BitWidths`."""
    network = _uniform_network(state, bits, apart=apart)
    return SetRanges().apply(replace(state, maybe_network=network), advance)


def _uniform_network(state: State, bits: int, *, apart: bool) -> fx.GraphModule:
    """Return the network with all quantizers at one width, not yet inserted."""
    uniform = {"weight_bits": bits, "activation_bits": bits, "edge_bits": bits, "layers": {}}
    widths = replace(bit_widths(state.config.model_copy(update=uniform), raw=state.data.raw), apart=apart)
    return annotate(copy.deepcopy(state.network), state.target.rules, widths)


def describe_sensitivity(sensitivity: Sensitivity) -> list[dict[str, Any]]:
    """Return one entry for each group and width, as in ``report.json`` and ``--json``."""
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
