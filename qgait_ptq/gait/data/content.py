"""Digests of sequences, which tell test sets apart whose names are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from qgait_ptq.gait.data.dataset import SequenceRecord, Silhouettes
    from qgait_ptq.gait.protocols import TestSet

DIGITS = 16  # of a digest in a report


def sequence_digest(silhouettes: Silhouettes) -> bytes:
    """Return a digest of the values, the shape and the type of a sequence ``[s, ...]``."""
    digest = hashlib.sha256(f"{silhouettes.dtype.str} {silhouettes.shape}\n".encode())
    digest.update(np.ascontiguousarray(silhouettes).data)
    return digest.digest()


def digest_of_tests(
    records: Sequence[SequenceRecord], digests: Sequence[bytes], test_set: TestSet | None
) -> str:
    """Return a digest of test sequences and their use, whatever their folder and order.

    Args:
        records: records of the sequences.
        digests: digest of each sequence, see `sequence_digest`.
        test_set: gallery and probes among them; None without a protocol.
    """
    uses: list[list[str]] = [[] for _ in records]
    for name, indices in _sets(test_set).items():
        for index in indices:
            uses[index].append(name)
    lines = [
        f"{record.name}\n{digest.hex()} {sorted(use)}\n"
        for record, digest, use in zip(records, digests, uses, strict=True)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:DIGITS]


def _sets(test_set: TestSet | None) -> dict[str, Sequence[int]]:
    """Return the indices of the gallery and of each probe set, by a name for each."""
    if test_set is None:
        return {}
    probes = {f"probes {name}": indices for name, indices in test_set.probes.items()}
    return {"gallery": test_set.gallery, **probes}
