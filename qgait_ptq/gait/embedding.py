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
    """Return a sequence as a batch of one.

    Args:
        silhouettes: silhouettes ``[s, h, w]`` in 0..255, or maps ``[s, c, h, w]``.
        record: record of the sequence, for errors.
        frame_shape: shape of a frame of the network.
        frames: frame count, for networks that accept only one. Frames are repeated cyclically or cut at the
            end. None: all frames up to `limit`.
        limit: largest number of frames.

    Returns:
        Network input ``[1, s, h, w]`` in [0, 1], or ``[1, s, c, h, w]``.

    Raises:
        DataError: the frames have another shape.
    """
    if silhouettes.shape[1:] != frame_shape:
        raise DataError(
            f"{record.name}: silhouettes of {shape_text(silhouettes.shape[1:])}, but the network and the "
            f"other sequences have {shape_text(frame_shape)}; resize "
            "them (square frames lose their empty columns)"
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

    Each batch holds one sequence with all its frames, so that no padding is needed.

    Args:
        data: sequences to embed.
        networks: functions that map silhouettes ``[1, s, h, w]`` in [0, 1] to ``[1, c, p]`` or ``[1, c]``.
        frame_shape: shape of a frame of the networks.
        frames: frame count, for networks that accept only one; None for all frames.
        advance: function to call after each sequence.

    Returns:
        Embeddings ``[n, c, p]`` of each network on the CPU. Networks without parts give p = 1.

    Raises:
        DataError: the frames of a sequence have another shape.
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
    """Return an embedding ``[n, c]`` as ``[n, c, 1]``, and ``[n, c, p]`` unchanged."""
    return embedding[..., None] if embedding.ndim == 2 else embedding
