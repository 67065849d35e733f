"""The batches that IDC and fine-tuning learn from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from qgait_ptq.calibration.batches import batch_size, clips_at_once, unlabelled_batches
from qgait_ptq.calibration.block_training import BlockBatches
from qgait_ptq.calibration.held_out import embed_clips
from qgait_ptq.calibration.training_batches import (
    BatchSource,
    LabelledBatches,
    MixedBatches,
    PoolBatches,
    SequenceBatches,
)
from qgait_ptq.gait.data.frame_pool import FramePool
from qgait_ptq.graph.frame_independence import (
    PROOF_FRAMES,
    FrameIndependence,
    prove_frame_independence,
)
from qgait_ptq.graph.network_input import as_network_input
from qgait_ptq.stages.state import State
from qgait_ptq.system.invariants import present

BLOCK_BATCHES = 32  # batches of single frames for the blocks, drawn once
BLOCK_FRAMES = 96  # of such a batch
REFIT_CLIPS = 16  # of a batch of the refit
JUDGING_SHARE = 8  # one in this number of the identities with several sequences judges the last layers
FEWEST_JUDGES = 2  # identities: one alone has no place to lose
FEWEST_REFITTED = 2 * FEWEST_JUDGES * JUDGING_SHARE  # sequences, so that pairs of judges can be spared
NO_PAIRS = np.empty((0, 2), np.int64)


def labelled_batches(state: State, frames: int, *, consecutive: bool) -> LabelledBatches:
    """Return the source of P×K batches of labelled clips, of at most `frames` frames."""
    training, counts = present(state.training), state.captured.frame_counts
    length = training.clips.silhouettes.shape[1]
    taken = counts.nearest(min(frames, length))
    embeddings = None
    if taken == length:  # the float network need not embed each batch again
        embeddings = embed_clips(state.network, training.clips, batch_size(state), state.device)
    return LabelledBatches(training.clips, training.sampler, taken, consecutive, embeddings)


def end_to_end_batches(state: State, pool: FramePool) -> BatchSource:
    """Return the batches of the end-to-end part: frames of the pool, and labelled clips if there are any."""
    config = state.config.finetune
    frames = state.captured.frame_counts.nearest(config.frames)
    clips, consecutive = state.captured.batch or config.clips, not frames_are_independent(state)
    unlabelled = PoolBatches(pool, clips, frames, consecutive)
    if state.training is None or config.labelled_every == 0:
        return unlabelled
    labelled = labelled_batches(state, frames, consecutive=consecutive)
    return MixedBatches(labelled, unlabelled, config.labelled_every)


def block_batches(state: State, quantized: fx.GraphModule, pool: FramePool) -> BlockBatches:
    """Return batches of sequences for the blocks, and of single frames if the network treats each alone.

    A network of a fixed batch size gets sequences: a batch of so few frames would teach little.
    """
    config = state.config.finetune
    sequences = unlabelled_batches(state)
    if not config.block_steps or state.captured.batch is not None:
        return BlockBatches(sequences)
    proof = _prove_frame_independence(state, quantized)
    if not proof.holds:
        return BlockBatches(sequences)
    draw = partial(_draw_clips, state, pool)
    frames = [draw(batch, BLOCK_FRAMES, 1) for batch in range(BLOCK_BATCHES)]
    return BlockBatches(sequences, frames, proof.pooled)


@dataclass(frozen=True)
class RefitClips:
    """Clips for the refit of the last layers.

    Attributes:
        learned: clips to learn from.
        judging: clips of identities that are not in `learned`; none if ranks are not trained.
        obstacle: cause why ranks cannot be trained; empty if they can, or if it is not requested.
        short: number of sequences that are left out because they are shorter than the clips.
    """

    learned: SequenceBatches
    judging: SequenceBatches
    obstacle: str = ""
    short: int = 0


def refit_clips(state: State, pool: FramePool) -> RefitClips:
    """Return clips of the pool for the refit. Clips of one identity come in pairs, which share a batch."""
    config, fixed = state.config.finetune, state.captured.batch
    clips = fixed or max(2, min(clips_at_once(state), REFIT_CLIPS) // 2 * 2)
    # As long as clips of the corrections: repeated frames change sums.
    frames = state.captured.frame_counts.nearest(state.unlabelled.shape[1])
    short = 0
    if not state.captured.frame_counts.fixed:
        long = pool.has_frames(frames)
        short, pool = int((~long).sum()), pool.take(np.flatnonzero(long))
    order, judges = paired_order(pool.labels, config.refit, state.config.seed)
    obstacle = ""
    if config.rank_weight == 0:
        judges = 0
    elif config.refit < FEWEST_REFITTED:
        obstacle = f"finetune.refit is {config.refit}; judges need {FEWEST_REFITTED} sequences or more"
    elif judges == 0:
        obstacle = (
            f"the pool of fine-tuning has fewer than {FEWEST_JUDGES * JUDGING_SHARE} people with known "
            "labels and two sequences"
        )
    elif fixed is not None and (fixed % 2 or judges < fixed):
        judges, obstacle = 0, f"the network takes batches of {fixed} only, which cannot be filled with pairs"

    def batches(chosen: NDArray[np.int64]) -> SequenceBatches:
        return SequenceBatches(pool.take(chosen), clips, frames, state.device, complete=fixed is not None)

    return RefitClips(batches(order[judges:]), batches(order[:judges]), obstacle, short)


def paired_order(labels: NDArray[np.int64], limit: int, seed: int) -> tuple[NDArray[np.int64], int]:
    """Return a random order of sequences, and how many of the first ones judge the others.

    Pairs of one identity come first, so that batches of an even number of sequences never part them. The
    identities of the first pairs have no other sequence in the order.

    Args:
        labels: identity of each sequence, ``[n]``; negative without one.
        limit: largest number of sequences.
        seed: random seed.
    """
    rng = np.random.default_rng([seed, len(labels)])
    shuffled = rng.permutation(len(labels))
    of_identity = {label: shuffled[labels[shuffled] == label] for label in np.unique(labels[labels >= 0])}
    identities = [sequences for sequences in of_identity.values() if len(sequences) > 1]
    chosen = rng.permutation(len(identities))
    most = limit // JUDGING_SHARE // 2  # pairs that judge
    count = min(len(chosen) // JUDGING_SHARE, most)
    judges = [identities[i] for i in chosen[: count if count >= FEWEST_JUDGES else 0]]
    judging = _in_turns([_pairs(one) for one in judges])[:most]
    others = [_pairs(identities[i]) for i in chosen[len(judges) :]]
    learned = rng.permutation(np.concatenate(others)) if others else NO_PAIRS
    unused = np.concatenate(judges) if judges else NO_PAIRS.ravel()
    paired = learned.ravel()
    rest = shuffled[~np.isin(shuffled, np.concatenate([unused, paired]))]
    order = np.concatenate([judging.ravel(), paired, rest])[:limit]
    return order, judging.size


def _in_turns(pairs: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the first pair of each identity, then the second of each, and so on, ``[n, 2]``."""
    longest = max(map(len, pairs), default=0)
    turns = [one[turn] for turn in range(longest) for one in pairs if turn < len(one)]
    return np.stack(turns) if turns else NO_PAIRS


def _pairs(sequences: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return disjoint pairs ``[n, 2]`` of some sequences; an odd one is left out."""
    return sequences[: len(sequences) // 2 * 2].reshape(-1, 2)


def _draw_clips(state: State, pool: FramePool, batch: int, clips: int, frames: int) -> Tensor:
    """Return a batch of clips of the pool as network input, on the device."""
    rng = np.random.default_rng([state.config.seed, batch])
    drawn = pool.draw(rng, clips, frames, consecutive=False)
    return as_network_input(torch.from_numpy(drawn).to(state.device))


def frames_are_independent(state: State) -> bool:
    """Return whether any frames of a sequence make a clip, because the network treats each alone."""
    return _prove_frame_independence(state, state.network).holds


def _prove_frame_independence(state: State, graph_module: fx.GraphModule) -> FrameIndependence:
    examples = [state.captured.example(1, count).to(state.device) for count in PROOF_FRAMES]
    if not all(map(state.captured.frame_counts.fits, (1, *PROOF_FRAMES))):
        return FrameIndependence(False, "the network does not take these frame counts")
    return prove_frame_independence(graph_module, examples)
