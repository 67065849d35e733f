"""Embeddings of whole data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qgait_ptq.gait.dataset import GaitDataset
from qgait_ptq.gait.sampling import all_frames, to_network_input

Embed = Callable[[Tensor], Tensor]


def embed_dataset(
    data: GaitDataset, networks: Sequence[Embed], advance: Callable[[], None] = lambda: None
) -> list[Tensor]:
    """Embed every sequence with several networks, reading each sequence once.

    A sequence is a batch of its own with all its frames, so that padding changes nothing.

    Args:
        data: the sequences.
        networks: each takes silhouettes ``[1, s, h, w]`` in [0, 1] and gives ``[1, c, p]`` or ``[1, c]``.
        advance: called after each sequence.

    Returns:
        For each network the embeddings ``[n, c, p]`` (p = 1 where the network has no parts), on the CPU.
    """
    embeddings: list[list[Tensor]] = [[] for _ in networks]
    with torch.inference_mode():
        for silhouettes, _ in data:
            batch = to_network_input(all_frames(silhouettes))[None]
            for kept, network in zip(embeddings, networks, strict=True):
                kept.append(as_parts(network(batch)).cpu())
            advance()
    return [torch.cat(kept) for kept in embeddings]


def as_parts(embedding: Tensor) -> Tensor:
    """``[n, c]`` to ``[n, c, 1]``; ``[n, c, p]`` as it is."""
    return embedding[..., None] if embedding.ndim == 2 else embedding
