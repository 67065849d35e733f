"""The batches that IDC and fine-tuning learn from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, fx

from qgait_ptq.calibration.batches import clips_at_once, unlabelled_batches
from qgait_ptq.calibration.block_training import BlockBatches
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


def labelled_batches(state: State, frames: int, *, consecutive: bool) -> LabelledBatches:
    """Return the source of P×K batches of labelled clips, of at most `frames` frames."""
    training, counts = present(state.training), state.captured.frame_counts
    return LabelledBatches(
        training.clips,
        training.embeddings,
        training.sampler,
        counts.nearest(min(frames, training.clips.silhouettes.shape[1])),
        consecutive,
    )


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
    """Return batches of sequences for the blocks, and of single frames if the network treats each alone."""
    config = state.config.finetune
    sequences = unlabelled_batches(state)
    if not config.block_steps:
        return BlockBatches(sequences)
    proof = _prove_frame_independence(state, quantized)
    if not proof.holds:
        return BlockBatches(sequences)
    draw = partial(_draw_clips, state, pool)
    frames = [draw(batch, BLOCK_FRAMES, 1) for batch in range(BLOCK_BATCHES)]
    return BlockBatches(sequences, frames, proof.pooled)


def refit_batches(state: State, pool: FramePool) -> Sequence[Tensor]:
    """Return batches of whole clips of the pool, on which the last layers are refitted."""
    limit, counts, fixed = state.config.finetune.refit, state.captured.frame_counts, state.captured.batch
    if limit == 0:
        return ()
    order = np.random.default_rng([state.config.seed, limit]).permutation(len(pool))[:limit]
    clips = fixed or min(clips_at_once(state), REFIT_CLIPS)
    # As long as clips of the corrections, which are not longer than the data: repeated frames change sums.
    frames = counts.nearest(state.unlabelled.shape[1])
    return SequenceBatches(pool.take(order), clips, frames, state.device, complete=fixed is not None)


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
