"""Embeddings of a whole data set as one npz file, in parallel, and resumable."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.runtime.embedder import Embedder

if TYPE_CHECKING:
    from qgait_ptq.gait.dataset import GaitDataset

PIECE = 64  # sequences that are written at a time


def embed_to_file(
    embedder: Embedder,
    data: GaitDataset,
    out: Path,
    jobs: int,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Embed sequences into a file with ``embeddings [n, parts, channels]`` and ``names [n]``.

    What is done lies in pieces beside the file until all is done, so that a run that was killed goes on.

    Args:
        embedder: shared by the threads.
        data: the sequences.
        out: the npz file.
        jobs: sequences at a time.
        advance: called after each sequence.

    Returns:
        How many were found done.

    Raises:
        DataError: a sequence cannot be read or embedded; it is named.
    """
    pieces = out.with_name(f".{out.name}.{_fingerprint(embedder, data)}")
    pieces.mkdir(exist_ok=True)
    resumed, parts = 0, []

    def embed(index: int) -> NDArray[np.float32]:
        sequence, record = data[index]
        try:
            embedding = embedder(sequence if data.layout is None else data.layout.unpack(sequence))
        except DataError as error:
            raise DataError(f"{record.name}: {error}") from None
        advance()
        return embedding

    with _removed_where_empty(pieces), ThreadPoolExecutor(jobs) as pool:
        for start in range(0, len(data), PIECE):
            count = min(PIECE, len(data) - start)
            piece = pieces / f"{start:08d}.npy"
            done = _read_piece(piece, count)
            if done is None:
                done = np.stack(list(pool.map(embed, range(start, start + count))))
                _write(piece, partial(_save_array, done))
            else:
                resumed += count
                for _ in range(count):
                    advance()
            parts.append(done)
    names = np.array([record.name for record in data.records])
    embeddings = np.concatenate(parts)
    _write(out, lambda file: np.savez(file, embeddings=embeddings, names=names))
    shutil.rmtree(pieces)
    return resumed


@contextmanager
def _removed_where_empty(folder: Path) -> Iterator[None]:
    """What fails before anything was embedded leaves nothing behind."""
    try:
        yield
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def read_embeddings(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """Embeddings ``[n, parts, channels]`` and names of a file.

    Raises:
        DataError: it is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["embeddings"], [str(name) for name in archive["names"]]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a file of embeddings ({error})") from None


def _fingerprint(embedder: Embedder, data: GaitDataset) -> str:
    """Of the network and the sequences, so that pieces of others are not taken."""
    digest = hashlib.sha256(embedder.path.read_bytes())
    for record in data.records:
        digest.update(f"{record.name}\n".encode())
    return digest.hexdigest()[:16]


def _read_piece(path: Path, count: int) -> NDArray[Any] | None:
    try:
        piece = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return piece if len(piece) == count else None


def _save_array(array: NDArray[np.float32], file: Any) -> None:
    np.save(file, array)


def _write(path: Path, save: Callable[[Any], None]) -> None:
    """Beside its place first, then renamed."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "wb") as file:
            save(file)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
