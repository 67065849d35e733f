"""Sequences for the calibrating stages: cut to clips, split by label, in batches that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from qgait_ptq.calibration.held_out import embed_clips
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.clips import (
    SMALLEST_IDENTITIES,
    SMALLEST_SEQUENCES,
    LabelledClips,
    cut_clips,
    split_identities_off,
    usable_identities,
)
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sampling import PKSampler
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.graph.network_input import as_network_input
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.stages.stage import nothing
from qgait_ptq.stages.state import State
from qgait_ptq.stages.training_data import Clips, TrainingData
from qgait_ptq.system.progress import Advance

CLIPS_PER_BATCH = 8  # for stages that need no labels
SAVED_FACTOR = 3  # memory of the backward pass, in multiples of the size of all node outputs
MEGABYTE = 2**20


def calibration_sequences(state: State) -> GaitDataset:
    """Return the calibration sequences, chosen with the seed; at least two of each identity for learning."""
    config = state.config
    together = SMALLEST_SEQUENCES if _learns(config) else 1
    return state.data.calibration.choose(config.calibration_sequences, config.seed, together=together)


def cut(state: State, chosen: GaitDataset, frames: int) -> LabelledClips:
    """Return clips of at most `frames` frames, of a length that the network takes."""
    captured = state.captured
    return cut_clips(chosen, frames, captured.frame_shape, state.config.seed, captured.frame_counts)


def with_training_data(state: State, clips: LabelledClips) -> State:
    """Return the state with training clips and held-out clips, if there are enough labelled sequences.

    Raises:
        DataError: IDC was requested, but too few identities have two sequences.
    """
    config = state.config.idc
    if not _learns(state.config):
        return state
    usable = len(usable_identities(clips.subjects))
    if usable < SMALLEST_IDENTITIES:
        text = (
            f"the calibration set of {len(clips.subjects)} sequences has {usable} identities with two "
            f"sequences or more; IDC needs {SMALLEST_IDENTITIES}"
        )
        if config.enabled:
            raise DataError(text)
        if config.enabled is False:  # the user knows that there is no IDC
            return state
        return state.noting(f"{text}; IDC is left out").recording(idc={"left_out": text})
    alone = len(set(clips.subjects)) - usable
    if alone and config.enabled is not False:
        state = state.noting(f"{alone} identities have only one sequence; IDC does not use them")
    learned, held_out = split_identities_off(clips.subjects, config.held_out, state.config.seed)
    everything = Clips(clips.silhouettes, clips.labels)
    judging = everything.take(held_out)
    subjects = [clips.subjects[index] for index in learned]
    identities = min(config.identities, len(set(subjects)))
    training = TrainingData(
        everything.take(learned),
        PKSampler(subjects, identities, config.sequences),
        judging,
        embed_clips(state.network, judging, batch_size(state), state.device),
        frozenset(clips.subjects[index] for index in held_out),
    )
    return replace(state, training=training)


def with_unlabelled_clips(state: State, chosen: GaitDataset) -> State:
    """Return the state with silhouettes ``[n, s, h, w]`` for stages without labels.

    Held-out identities are excluded. A rounding fitted to them would look better on them than it is, and no
    later stage could improve on it.
    """
    clips = cut(state, chosen, state.config.correction_frames)
    state = state.noting(*clip_notes(clips))
    silhouettes = clips.silhouettes
    if state.training is not None:
        held_out = state.training.held_out_subjects
        silhouettes = silhouettes[torch.tensor([subject not in held_out for subject in clips.subjects])]
    return replace(state, maybe_unlabelled=silhouettes)


def clip_notes(clips: LabelledClips) -> list[str]:
    """Return what to tell about sequences of which there is no clip."""
    notes = []
    if clips.copies:
        notes.append(
            f"{clips.copies} calibration sequences repeat others; rounding, bias correction and IDC leave "
            "them out, and ranges are measured on all"
        )
    if clips.short:
        length = clips.silhouettes.shape[1]
        notes.append(
            f"{clips.short} calibration sequences are shorter than {length} frames, far shorter than the "
            "others; rounding and bias correction leave them out"
        )
    return notes


def taken_batches(state: State, data: GaitDataset, advance: Advance = nothing) -> Iterator[Tensor]:
    """Yield sequences as batches of one, on the device, of at most the configured frames.

    Sequences of frame counts that the network does not take are left out.
    """
    captured = state.captured
    counts = captured.frame_counts
    limit = counts.nearest(state.config.calibration_frames)
    for silhouettes, record in data:
        if counts.fits(min(len(silhouettes), limit)):
            batch = network_batch(silhouettes, record, captured.frame_shape, counts, limit)
            yield batch.to(state.device)
        advance()


def unlabelled_batches(state: State) -> list[Tensor]:
    """Return the clips ``[n, s, h, w]`` as network inputs, on the device."""
    parts = state.unlabelled.split(batch_size(state))
    return [as_network_input(part.to(state.device)) for part in parts]


def batch_size(state: State) -> int:
    """Return the number of clips in a batch, for stages that need no labels."""
    return state.captured.batch or CLIPS_PER_BATCH


def clips_at_once(state: State, frames: int | None = None) -> int:
    """Return the number of clips that fit into the memory for the backward pass.

    Args:
        state: state with a network.
        frames: frames of a clip; None for those of IDC's clips.
    """
    captured, network = state.captured, state.network
    if captured.batch is not None:
        return captured.batch
    frames = captured.frame_counts.nearest(frames or state.config.idc.frames)
    nodes = list(network.graph.nodes)
    shapes = [observed_shape(node) for node in nodes]
    # The silhouettes, [n, s, h, w]. Constants may come before them.
    example = next(
        shape for node, shape in zip(nodes, shapes, strict=True) if node.op == "placeholder" and shape
    )
    bytes_each = 4 * sum(math.prod(shape) for shape in shapes if shape) * frames / (example[0] * example[1])
    return max(1, int(state.config.idc.memory_mb * MEGABYTE / (SAVED_FACTOR * bytes_each)))


def _learns(config: QuantConfig) -> bool:
    """Return whether any stage learns from labels or selects steps with them."""
    finetunes = config.finetune.enabled and config.finetune.steps
    return bool(config.idc.enabled is not False or finetunes or config.needs_held_out)
