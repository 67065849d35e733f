"""Embeddings of whole data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord, Silhouettes
from qgait_ptq.gait.data.sampling import LONGEST_TEST_SEQUENCE, to_network_input
from qgait_ptq.gait.data.sequences import shape_text

Embed = Callable[[Tensor], Tensor]


def network_batch(
    silhouettes: Silhouettes,
    record: SequenceRecord,
    frame_shape: tuple[int, ...],
    frames: int | None = None,
    limit: int = LONGEST_TEST_SEQUENCE,
) -> Tensor:
    """One sequence as a batch of one.

    Args:
        silhouettes: ``[s, h, w]`` in 0..255, or maps ``[s, c, h, w]``.
        record: where it came from, for errors.
        frame_shape: of the frames that the network takes.
        frames: exact frame count, for networks that take one only: frames are repeated in a circle or left
            out at the end. None takes all frames up to `limit`.
        limit: longest sequence.

    Returns:
        ``[1, s, h, w]`` in [0, 1], or ``[1, s, c, h, w]``.

    Raises:
        DataError: frames of another shape.
    """
    if silhouettes.shape[1:] != frame_shape:
        raise DataError(
            f"{record.name}: silhouettes of {shape_text(silhouettes.shape[1:])}, the network and the other "
            f"sequences have {shape_text(frame_shape)} (square ones lose their empty columns)"
        )
    if frames is not None:
        silhouettes = silhouettes[np.arange(frames) % len(silhouettes)]
    return to_network_input(silhouettes[:limit])[None]


def embed_dataset(
    data: GaitDataset,
    networks: Sequence[Embed],
    frame_shape: tuple[int, ...],
    frames: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Embed every sequence with several networks, reading each sequence once.

    A sequence is a batch of its own with all its frames, so that padding changes nothing.

    Args:
        data: the sequences.
        networks: each takes silhouettes ``[1, s, h, w]`` in [0, 1] and gives ``[1, c, p]`` or ``[1, c]``.
        frame_shape: of the frames that the networks take.
        frames: exact frame count; None takes all.
        advance: called after each sequence.

    Returns:
        For each network the embeddings ``[n, c, p]`` (p = 1 where the network has no parts), on the CPU.

    Raises:
        DataError: a sequence with frames of another shape.
    """
    embeddings: list[list[Tensor]] = [[] for _ in networks]
    with torch.inference_mode():
        for silhouettes, record in data:
            batch = network_batch(silhouettes, record, frame_shape, frames)
            for kept, network in zip(embeddings, networks, strict=True):
                kept.append(as_parts(network(batch)).cpu())
            advance()
    return [torch.cat(kept) for kept in embeddings]


def as_parts(embedding: Tensor) -> Tensor:
    """``[n, c]`` to ``[n, c, 1]``; ``[n, c, p]`` as it is."""
    return embedding[..., None] if embedding.ndim == 2 else embedding
