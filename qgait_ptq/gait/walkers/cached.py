"""Rendered walkers in the user's cache, one file for each identity.

The name of a file is a digest of everything that determines its content: identity, settings, versions of the
package and of NumPy, and the source code of the walkers.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.population import WalkerLabel, WalkerSettings
from qgait_ptq.system.file_cache import FileCache, user_cache_folder

LARGEST_CACHE = 200 * 10**6  # bytes; the built-in data take about a tenth
SIZE, FOREGROUND = 64, np.uint8(255)

Walks = list[tuple[WalkerLabel, NDArray[np.uint8]]]
Trials = tuple[tuple[Condition, int], ...]


def open_walker_cache(note: Callable[[str], None], limit: int = LARGEST_CACHE) -> FileCache | None:
    """Return the cache of the user; None if the user has no home folder.

    Args:
        note: receives one line for the user if the cache cannot be used.
        limit: largest size in bytes.
    """
    try:
        return FileCache(user_cache_folder() / "walkers", limit, note)
    except RuntimeError as error:
        note(f"nothing is cached ({error})")
        return None


def walker_key(identity: int, settings: WalkerSettings, trials: Trials, views_per_trial: int) -> str:
    """Return the name of the file of an identity."""
    content = [identity, asdict(settings), trials, views_per_trial, version("qgait-ptq"), np.__version__]
    text = json.dumps([*content, _source_digest()])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def encode_walks(walks: Walks) -> bytes:
    """Return the sequences of an identity as bytes: labels, then one bit for each pixel."""
    labels = [
        [label.identity, label.condition, label.number, label.view, len(silhouettes)]
        for label, silhouettes in walks
    ]
    bits = np.packbits(np.concatenate([silhouettes for _, silhouettes in walks]) > 0, axis=-1)
    return zlib.compress(json.dumps(labels).encode() + b"\n" + bits.tobytes(), level=1)


def decode_walks(content: bytes) -> Walks:
    """Return the sequences of `encode_walks`."""
    head, _, bits = zlib.decompress(content).partition(b"\n")
    packed = np.frombuffer(bits, np.uint8).reshape(-1, SIZE, SIZE // 8)
    walks: Walks = []
    start = 0
    for identity, condition, number, view, frames in json.loads(head):
        silhouettes = np.unpackbits(packed[start : start + frames], axis=-1) * FOREGROUND
        walks.append((WalkerLabel(identity, Condition(condition), number, view), silhouettes))
        start += frames
    return walks


@cache
def _source_digest() -> str:
    """Return a digest of the code that renders walkers."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
