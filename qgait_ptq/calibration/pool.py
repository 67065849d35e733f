"""The sequences that fine-tuning learns from, and the clips that judge it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.held_out import HeldOut, embed_clips
from qgait_ptq.gait.data.clips import SMALLEST_SEQUENCES
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord
from qgait_ptq.gait.data.frame_pool import UNKNOWN, FramePool, collect_frames
from qgait_ptq.stages.state import State
from qgait_ptq.stages.training_data import Clips
from qgait_ptq.system.progress import Advance

STRETCH = 32  # smallest number of frames of a sequence in the pool: more than one gait cycle
FEW_SEQUENCES = 250  # fewer are easily overfitted
JUDGES = (4, 64)  # smallest and largest number of sequences that judge where no labels exist
JUDGING_SHARE = 8  # one in this number of sequences


@dataclass(frozen=True)
class PoolRecords:
    """The sequences that fine-tuning may learn from.

    Attributes:
        data: the sequences.
        labels: number of the identity of each sequence, ``[n]`` int64; `UNKNOWN` without one.
        left_out: number of sequences without labels that are left out, because they are files of test
            sequences or held-out ones.
        unused: number of other sequences without labels that exceed the largest number to learn from.
    """

    data: GaitDataset
    labels: NDArray[np.int64]
    left_out: int = 0
    unused: int = 0


def pool_records(state: State) -> PoolRecords:
    """Return the sequences that fine-tuning may learn from.

    These are training sequences and sequences without labels, but none of held-out identities and none of the
    test set.
    """
    data, seed, limit = state.data, state.config.seed, state.config.finetune.unlabelled
    held_out = state.training.held_out_subjects if state.training else frozenset()
    own = data.calibration.where(lambda record: record.subject not in held_out)
    chosen = own.choose(limit, seed, together=SMALLEST_SEQUENCES).records
    if data.finetuning is not None:
        more = data.finetuning.where(lambda record: record.subject not in held_out)
        drawn = more.choose(limit - len(chosen), seed, together=SMALLEST_SEQUENCES)
        chosen = [*chosen, *drawn.records]
    numbers = {subject: number for number, subject in enumerate(sorted({r.subject for r in chosen}))}
    labels = [numbers[record.subject] for record in chosen]
    left_out = unused = 0
    if data.unlabelled is not None:
        unseen = [*data.test.records, *(r for r in data.calibration.records if r.subject in held_out)]
        usable = _without_files_of(data.unlabelled, unseen)
        left_out = len(data.unlabelled) - len(usable)
        others = _without_files_of(usable, own.records)
        new = others.choose(limit - len(chosen), seed).records
        unused = len(others) - len(new)
        chosen, labels = [*chosen, *new], [*labels, *[UNKNOWN] * len(new)]
    records = GaitDataset(chosen, own.description, own.layout, own.notes)
    return PoolRecords(records, np.array(labels, np.int64), left_out, unused)


def _without_files_of(data: GaitDataset, records: Iterable[SequenceRecord]) -> GaitDataset:
    """Return the sequences that are not read from files of some records."""
    known = _files(records)
    return data.where(lambda record: known.isdisjoint(_files([record])))


def _files(records: Iterable[SequenceRecord]) -> set[Path]:
    """Return the files or folders that records are read from."""
    return {path.resolve() for record in records for path in record.sources}


def collect_pool(state: State, records: PoolRecords, advance: Advance) -> FramePool:
    """Read the frames of the pool: of each sequence a stretch that is as long as the clips drawn from it."""
    config, captured = state.config, state.captured
    wanted = (config.finetune.frames, config.idc.frames, state.unlabelled.shape[1])
    longest = max(STRETCH, *map(captured.frame_counts.nearest, wanted))
    memory = config.finetune.memory_mb
    return collect_frames(
        records.data, records.labels, longest, captured.frame_shape, memory, config.seed, advance
    )


def held_out_identities(state: State, loss: IdcLoss, batch: int) -> HeldOut | None:
    """Return the clips of held-out identities, which choose between candidates; None without labels.

    Args:
        state: state with training data.
        loss: loss to judge by.
        batch: clips in one forward pass.
    """
    training = state.training
    if training is None:
        return None
    embeddings = training.held_out_embeddings
    return HeldOut(training.held_out, embeddings, loss, labelled=True, batch=batch, device=state.device)


def judge(state: State, loss: IdcLoss, batch: int) -> tuple[FramePool, HeldOut]:
    """Return the pool to learn from, and the clips that choose between candidates.

    Clips of held-out identities judge. Without labels, some sequences of the pool do, and leave it. The
    arguments are those of `held_out_identities`.
    """
    pool, device = state.pool, state.device
    held_out = held_out_identities(state, loss, batch)
    if held_out is not None:
        return pool, held_out
    rng = np.random.default_rng([state.config.seed, len(pool)])
    count = min(max(JUDGES[0], len(pool) // JUDGING_SHARE), JUDGES[1], max(1, len(pool) - 1))
    order = rng.permutation(len(pool))
    frames = state.captured.frame_counts.nearest(state.config.idc.frames)
    long = pool.has_frames(frames)[order]
    order = np.concatenate([order[long], order[~long]])  # repeated frames change sums
    drawn = pool.take(order[:count]).draw(rng, count, frames, consecutive=True)
    clips = Clips(torch.from_numpy(drawn), torch.zeros(count, dtype=torch.int64))
    embeddings = embed_clips(state.network, clips, batch, device)
    learned = pool.take(order[count:]) if len(pool) > count else pool
    return learned, HeldOut(clips, embeddings, loss, labelled=False, batch=batch, device=device)
