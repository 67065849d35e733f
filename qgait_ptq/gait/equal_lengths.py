"""Groups of sequences of equal shape, so that a network embeds several in one call without padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

BATCH_FRAMES = 144  # frames of a group; larger groups save no time on a CPU
WAITING_VALUES = 2**24  # values that wait for sequences of their length, 64 MiB in float32

Numbered = tuple[int, Tensor]


def in_equal_shapes(
    sequences: Iterable[Numbered], batch_frames: int = BATCH_FRAMES, waiting_values: int = WAITING_VALUES
) -> Iterator[list[Numbered]]:
    """Group sequences of equal shape.

    Args:
        sequences: numbers and batches of one sequence ``[1, s, ...]``.
        batch_frames: largest number of frames of a group. A longer sequence is a group of its own; 0 makes
            each sequence one.
        waiting_values: number of values that may wait. With more, the largest group is given early.

    Yields:
        Groups in the order in which they are complete. Numbers ascend within a group.
    """
    groups: dict[torch.Size, list[Numbered]] = {}
    waiting = 0
    for number, batch in sequences:
        group = groups.setdefault(batch.shape, [])
        group.append((number, batch))
        waiting += batch.numel()
        if (len(group) + 1) * batch.shape[1] > batch_frames:
            waiting -= _values(group)
            yield groups.pop(batch.shape)
        elif waiting > waiting_values:
            largest = max(groups.values(), key=_values)
            waiting -= _values(largest)
            yield groups.pop(largest[0][1].shape)
    yield from groups.values()


def _values(group: list[Numbered]) -> int:
    return sum(batch.numel() for _, batch in group)
