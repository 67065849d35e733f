"""Embeddings of a data set in one npz file, computed in parallel and resumable."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.sequences import frame_files
from qgait_ptq.runtime.embedder import Embedder
from qgait_ptq.system.locking import locked
from qgait_ptq.system.writing import remove_empty, whole_file

if TYPE_CHECKING:
    from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord

PIECE = 64  # sequences of an intermediate file


def embed_to_file(
    embedder: Embedder,
    data: GaitDataset,
    out: Path,
    jobs: int,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Embed sequences into a file with ``embeddings [n, parts, channels]`` and ``names [n]``.

    Intermediate files of `PIECE` sequences stay beside the file until it is complete, so that an interrupted
    run can continue.

    Args:
        embedder: embedder that all threads share.
        data: sequences to embed.
        out: path of the npz file.
        jobs: number of threads.
        advance: function to call after each sequence.

    Returns:
        The number of sequences that an earlier run had embedded.

    Raises:
        DataError: a sequence cannot be read or embedded, or the file cannot be written; the text names it.
        ConfigError: another run writes the same file.
    """
    embed = _SequenceEmbedding(embedder, data, advance)
    resumed, parts = 0, []
    with locked(out), _pieces_folder(out, _fingerprint(embedder, data)) as pieces, _threads(jobs) as pool:
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
        shutil.rmtree(pieces, ignore_errors=True)
    return resumed


class _SequenceEmbedding:
    """Embeds the sequence at an index. Errors name the sequence."""

    def __init__(self, embedder: Embedder, data: GaitDataset, advance: Callable[[], None]) -> None:
        self.embedder, self.data, self.advance = embedder, data, advance

    def __call__(self, index: int) -> NDArray[np.float32]:
        sequence, record = self.data[index]
        layout = self.data.layout
        try:
            embedding = self.embedder(sequence if layout is None else layout.unpack(sequence))
        except DataError as error:
            raise DataError(f"{record.name}: {error}") from None
        self.advance()
        return embedding


@contextmanager
def _pieces_folder(out: Path, fingerprint: str) -> Iterator[Path]:
    """Make the folder of intermediate files, and remove folders that interrupted runs left for other inputs.

    An empty folder is removed at the end.
    """
    folder = out.with_name(f".{out.name}.{fingerprint}")
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{{len(fingerprint)}}}")
    try:
        for entry in out.parent.iterdir():
            if name.fullmatch(entry.name) and entry != folder and entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be created ({error.strerror or error}); choose another --out"
        ) from None
    try:
        yield folder
    finally:
        remove_empty([folder])


@contextmanager
def _threads(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Start threads. Waiting tasks are cancelled when the block ends with an error."""
    pool = ThreadPoolExecutor(jobs)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def read_embeddings(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """Read embeddings ``[n, parts, channels]`` and names of sequences from a file.

    Raises:
        DataError: the file is not a file of embeddings.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["embeddings"], [str(name) for name in archive["names"]]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a file of embeddings ({error})") from None


def _fingerprint(embedder: Embedder, data: GaitDataset) -> str:
    """Return a digest of the network, the runtime and the source files.

    Intermediate files of other inputs are not used. A source file counts with name, size and time of
    modification, because a digest of its content would need a complete read.
    """
    digest = hashlib.sha256(embedder.path.read_bytes())
    digest.update(f"{embedder._runtime}\n".encode())  # runtimes round differently
    for record in data.records:
        digest.update(f"{record.name}\n".encode())
        try:
            for file in _source_files(record):
                status = file.stat()
                digest.update(f"{file.name}/{status.st_size}/{status.st_mtime_ns}\n".encode())
        except OSError as error:
            raise DataError(f"{record.name}: the file cannot be read ({error})") from None
    return digest.hexdigest()[:16]


def _source_files(record: SequenceRecord) -> Iterator[Path]:
    """Yield the files of a sequence."""
    for source in record.sources:
        if source.is_dir():
            yield from frame_files(source)
        else:
            yield source


def _read_piece(path: Path, count: int) -> NDArray[Any] | None:
    try:
        piece = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return piece if len(piece) == count else None


def _save_array(array: NDArray[np.float32], file: BinaryIO) -> None:
    content = BytesIO()  # numpy hides the reason of a write error
    np.save(content, array)
    file.write(content.getbuffer())


def _write(path: Path, save: Callable[[BinaryIO], None]) -> None:
    """Write a file completely or not at all."""
    try:
        with whole_file(path) as file:
            save(file)
    except OSError as error:
        raise DataError(
            f"{path}: the file cannot be written ({error.strerror or error}); choose another --out"
        ) from None
