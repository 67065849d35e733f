"""Embeddings of a data set in one npz file, computed in parallel and resumable."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError, DataError
from qgait_ptq.gait.data.modalities import read_modalities
from qgait_ptq.gait.data.png_frames import frame_files
from qgait_ptq.runtime.embedder import Embedder
from qgait_ptq.runtime.sequence_input import Recording
from qgait_ptq.system.exchanging import exchange, first_only, for_all, in_first, share_of
from qgait_ptq.system.locking import locked
from qgait_ptq.system.processes import processes
from qgait_ptq.system.threads import map_in_threads
from qgait_ptq.system.writing import beside, remove_empty, whole_file

if TYPE_CHECKING:
    from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord

PIECE = 64  # sequences of an intermediate file
DIGITS = 16  # of a fingerprint


def embed_to_file(
    embedder: Embedder,
    data: GaitDataset,
    out: Path,
    jobs: int,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Embed sequences into a file with ``embeddings [n, parts, channels]`` and ``names [n]``.

    Intermediate files of `PIECE` sequences stay beside the file until it is complete, so that an interrupted
    run can continue. The processes of a run share the sequences, and the first one writes.

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
        ConfigError: the path is a folder, or another run writes the same file.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; pass the path of the npz file to write")
    embed = _SequenceEmbedding(embedder, data, for_all(advance))
    folder = beside(out, f".{{}}.{_fingerprint(embedder, data)}")
    with in_first(locked(out)), in_first(_intermediate_folder(folder, out)):
        indices = range(len(data))
        pieces = {folder / f"{i:08d}.npy": indices[i : i + PIECE] for i in indices[::PIECE]}
        done = first_only(lambda: {path for path, piece in pieces.items() if _is_whole(path, len(piece))})
        for path, piece in pieces.items():
            if path in done:
                for _ in piece:
                    advance()
            else:
                own = list(map_in_threads(embed, share_of(piece), jobs))
                embeddings = np.stack([embedding for part in exchange(own) for embedding in part])
                if processes().first:
                    _write(path, partial(_save_array, embeddings))
        if processes().first:
            names = np.array([record.name for record in data.records])
            everything = np.concatenate([np.load(path, allow_pickle=False) for path in pieces])
            _write(out, lambda file: np.savez(file, embeddings=everything, names=names))
            shutil.rmtree(folder, ignore_errors=True)
    return sum(len(pieces[path]) for path in done)


class _SequenceEmbedding:
    """Embeds the sequence at an index. Errors name the sequence."""

    def __init__(self, embedder: Embedder, data: GaitDataset, advance: Callable[[], None]) -> None:
        self.embedder, self.data, self.advance = embedder, data, advance

    def __call__(self, index: int) -> NDArray[np.float32]:
        record = self.data.records[index]
        sequence = self._read(record)
        try:
            embedding = self.embedder(sequence)
        except DataError as error:
            raise DataError(f"{record.name}: {error}") from None
        self.advance()
        return embedding

    def _read(self, record: SequenceRecord) -> Recording:
        """Return a sequence; of several inputs, one array for each.

        The embedder cuts silhouettes, so sequences of a folder can have different sizes before.
        """
        layout, reading = self.data.layout, self.data.reading
        if layout is None:
            return record.load()
        if reading is None or not record.sources:
            return layout.unpack(record.load())
        names = [entry.name for entry in layout.inputs]
        arrays = read_modalities(dict(zip(names, record.sources, strict=True)), reading)
        return {name: array[: reading.longest] for name, array in arrays.items()}


@contextmanager
def _intermediate_folder(folder: Path, out: Path) -> Iterator[None]:
    """Make the folder of intermediate files, and remove folders that interrupted runs left for other inputs.

    An empty folder is removed at the end.
    """
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{{DIGITS}}}")
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
        yield
    finally:
        remove_empty([folder])


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
    digest = hashlib.sha256(f"{embedder.sha256}\n".encode())
    digest.update(f"{embedder._runtime}\n".encode())  # runtimes round differently
    for record in data.records:
        digest.update(f"{record.name}\n".encode())
        try:
            for file in _source_files(record):
                status = file.stat()
                digest.update(f"{file.name}/{status.st_size}/{status.st_mtime_ns}\n".encode())
        except OSError as error:
            raise DataError(f"{record.name}: the file cannot be read ({error})") from None
    return digest.hexdigest()[:DIGITS]


def _source_files(record: SequenceRecord) -> Iterator[Path]:
    """Yield the files of a sequence."""
    for source in record.sources:
        if source.is_dir():
            yield from frame_files(source)
        else:
            yield source


def _is_whole(path: Path, count: int) -> bool:
    """Return whether an intermediate file has the embeddings of `count` sequences."""
    try:
        return len(np.load(path, allow_pickle=False)) == count
    except (OSError, ValueError, EOFError):
        return False


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
