"""The calibrating stages without labels, in order: clips, equalization, ranges, rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor, fx

from qgait_ptq.calibration.batches import (
    MEGABYTE,
    calibration_sequences,
    cut,
    taken_batches,
    unlabelled_batches,
    with_training_data,
    with_unlabelled_clips,
)
from qgait_ptq.calibration.correction import CorrectionSettings, Rounding, correct_layers
from qgait_ptq.calibration.equalization import Equalization, equalize
from qgait_ptq.calibration.ranges import calibrate_ranges, can_share_batches
from qgait_ptq.capture.captured import FRAME_AXIS
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import CalibrationError
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.quantized_layers import quantized_layers
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import State
from qgait_ptq.system.exchanging import exchange, for_all
from qgait_ptq.system.progress import Advance

EQUALIZATION_BATCHES = 4


class ChooseClips(Stage):
    """Choose the calibration sequences and cut them to clips."""

    name = "clips"

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``chosen``, ``training`` and ``unlabelled``.

        Raises:
            CalibrationError: there is no sequence.
            DataError: frame sizes differ, or a requested stage needs more identities.
        """
        chosen = calibration_sequences(state)
        state = with_training_data(state, cut(state, chosen, state.config.idc.frames))
        return replace(with_unlabelled_clips(state, chosen), maybe_chosen=chosen)


class Equalize(Stage):
    """Scale channels of the float network without changing its output."""

    name = "equalization"

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Replace ``network``, and record ``equalized_groups`` and ``factors``."""
        network = copy.deepcopy(state.network)
        few = unlabelled_batches(state)[:EQUALIZATION_BATCHES]
        done = equalize(network, few, Equalization(state.config.equalization))
        factors = {name: factor.tolist() for name, factor in done.factors.items()}
        return replace(state, maybe_network=network).recording(equalized_groups=done.groups, factors=factors)


class SetRanges(Stage):
    """Stage 0: observe the float network and set scales and zero-points."""

    name = "ranges"

    def steps(self, state: State) -> int:
        """Return the number of sequences."""
        return len(state.chosen)

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Set ``quantized`` and its float ``reference``.

        Raises:
            CalibrationError: values are not finite, or there is no sequence.
        """
        quantized = insert_quantizers(state.network).to(state.device)
        shared = can_share_batches(quantized)
        chosen = state.chosen.share() if shared else state.chosen
        seen = 0

        def batches() -> Iterator[Tensor]:
            nonlocal seen
            for batch in taken_batches(state, chosen, for_all(advance) if shared else advance):
                seen += 1
                yield batch

        try:
            calibrate_ranges(quantized, batches())
        except CalibrationError:
            if seen or not len(chosen):
                raise
            cause = state.captured.causes.get(FRAME_AXIS)
            raise CalibrationError(
                "no calibration sequence has a usable length: the network is captured for "
                f"{state.captured.frame_counts}{f'; {cause}' if cause else ''}. Use sequences of such a "
                "length, or name the frame count of yours with --frames"
            ) from None
        reference = copy.deepcopy(quantized)
        set_quantizing(reference, False)
        seen = sum(exchange(seen)) if shared else seen
        if seen < len(state.chosen):
            state = state.noting(
                f"{len(state.chosen) - seen} calibration sequences are left out: the network is captured for "
                f"{state.captured.frame_counts}"
            )
        return replace(state, maybe_quantized=quantized, maybe_reference=reference)


class Correct(Stage):
    """Round weights with error compensation, and correct biases."""

    name = "rounding"

    def wanted(self, state: State) -> bool:
        """Return whether weights are compensated or biases corrected."""
        return state.config.rounding != "nearest" or state.config.bias_correction

    def steps(self, state: State) -> int:
        """Return the number of layers."""
        return len(quantized_layers(state.quantized))

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Replace ``quantized``, and record ``shared_weights`` and factors of ``refined_ranges``."""
        quantized, reference = _copies(state)
        settings = correction_settings(state.config)
        done = correct_layers(reference, quantized, unlabelled_batches(state), settings, advance)
        state = replace(state, maybe_quantized=quantized)
        if settings.refined_ranges:
            state = state.recording(refined_ranges=done.factors)
        if not done.left_alone:
            return state
        return state.recording(shared_weights=done.left_alone).noting(*shared_weight_notes(done.left_alone))


WITHOUT_LABELS: tuple[Stage, ...] = (ChooseClips(), Equalize(), SetRanges(), Correct())


def shared_weight_notes(left_alone: Sequence[str]) -> list[str]:
    """Return a note on layers that rounding leaves alone because other layers share their weight."""
    if not left_alone:
        return []
    names = ", ".join(dict.fromkeys(left_alone))  # a layer that is called twice is there twice
    return [f"weights that several layers share are rounded to nearest: {names}"]


def correction_settings(config: QuantConfig) -> CorrectionSettings:
    """Return the settings of rounding and bias correction."""
    return CorrectionSettings(
        Rounding(config.rounding),
        bias=config.bias_correction,
        refined_ranges=config.refined_ranges,
        seed=config.seed,
        memory=config.finetune.memory_mb * MEGABYTE,
    )


def _copies(state: State) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return a copy of the calibrated graph, to be changed, and the float reference."""
    quantized = copy.deepcopy(state.quantized)
    return quantized, state.reference
