"""Embeddings of whole data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qgait_ptq.errors import DataError, QgaitError, first_line
from qgait_ptq.gait.data.content import sequence_digest
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord, Silhouettes
from qgait_ptq.gait.data.sampling import to_network_input
from qgait_ptq.gait.data.sequences import shape_text
from qgait_ptq.gait.equal_lengths import BATCH_FRAMES, Numbered, in_equal_shapes
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.system.exchanging import exchange, for_all, share_of
from qgait_ptq.system.threads import Budget, map_in_threads

Embed = Callable[[Tensor], Tensor]


def network_batch(
    silhouettes: Silhouettes,
    record: SequenceRecord,
    frame_shape: tuple[int, ...],
    frames: FrameCounts | int | None = None,
    limit: int | None = None,
) -> Tensor:
    """Return a sequence as a batch of one.

    Args:
        silhouettes: ``[s, h, w]`` in 0..255, or maps ``[s, c, h, w]``.
        record: where it came from, for errors.
        frame_shape: of the frames that the network takes.
        frames: frame counts that the network takes, or the only one; None takes any. Sequences are brought to
            them as `FrameCounts.indices` says.
        limit: frames behind it are left out first; None keeps all, as `embed_dataset` does.

    Returns:
        Network input ``[1, s, h, w]`` in [0, 1], or ``[1, s, c, h, w]``.

    Raises:
        DataError: frames of another shape, or a frame count that the network does not take.
    """
    _check_shape(silhouettes, record, frame_shape)
    counts = frames if isinstance(frames, FrameCounts) else FrameCounts.exactly(frames)
    return to_network_input(counts.fit(silhouettes[:limit], record.name))[None]


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the sequences that all networks take.

    Attributes:
        embeddings: for each network ``[n, c, p]`` (p = 1 where the network has no parts), on the CPU.
        kept: indices of the sequences that were embedded.
        refused: one line for each of the others.
        lengths: frame counts of the sequences that were embedded, before they were repeated or cut.
        digests: digests of these sequences, as they were read.
    """

    embeddings: list[Tensor]
    kept: list[int]
    refused: list[str]
    lengths: list[int]
    digests: list[bytes]


def embed_dataset(
    data: GaitDataset,
    networks: Sequence[Embed],
    frame_shape: tuple[int, ...],
    frames: FrameCounts | int | None = None,
    advance: Callable[[], None] = lambda: None,
    batches: bool = False,
) -> list[Tensor]:
    """Embed every sequence with several networks, reading each sequence once.

    Each batch holds one sequence, or several of equal length, with all frames, so that no padding is needed.

    Args:
        data: the sequences.
        networks: each takes silhouettes ``[1, s, h, w]`` in [0, 1] and gives ``[1, c, p]`` or ``[1, c]``.
        frame_shape: shape of the frames that the networks take.
        frames: frame counts that the networks take, or the only one; None takes any.
        advance: called after each sequence.
        batches: whether the networks get sequences of equal length as one batch, which is faster.

    Returns:
        Embeddings ``[n, c, p]`` of each network on the CPU. Networks without parts give p = 1.

    Raises:
        DataError: a sequence with frames of another shape, or that a network does not take.
    """
    embedded = embed_taken(data, networks, frame_shape, frames, advance, batches)
    if embedded.refused:
        raise DataError(embedded.refused[0])
    return embedded.embeddings


def embed_taken(
    data: GaitDataset,
    networks: Sequence[Embed],
    frame_shape: tuple[int, ...],
    frames: FrameCounts | int | None = None,
    advance: Callable[[], None] = lambda: None,
    batches: bool = False,
    threads: int = 1,
) -> Embedded:
    """Embed the sequences that all of some networks take; other arguments as of `embed_dataset`.

    With `batches`, the networks get sequences of equal length as one batch, which is faster. If a batch
    fails, its sequences are embedded one at a time. The processes of a run share the sequences, and each gets
    the embeddings of all. The networks are called from `threads` threads at once, which together hold about
    as many frames as one alone would: long sequences wait for each other.

    Raises:
        DataError: a sequence with frames of another shape, or no sequence that all networks take.
    """
    advance = for_all(advance)
    embedding = _Embedding(data, share_of(range(len(data))), networks, Budget(BATCH_FRAMES))
    sequences = embedding.read(frame_shape, frames, advance)
    groups = in_equal_shapes(sequences, BATCH_FRAMES // threads if batches else 0)
    for count in map_in_threads(embedding.embed, groups, threads):
        for _ in range(count):
            advance()
    return _join(exchange(embedding.finish()))


@dataclass
class _Embedding:
    """Embeddings so far, by the number of the sequence.

    Attributes:
        data: the sequences.
        numbers: numbers of the sequences to embed.
        networks: networks that embed them.
        frames: number of frames that all threads may embed at once.
        done: for each sequence the outputs ``[1, c, p]`` of all networks.
        refused: for each other sequence a line with the reason.
        lengths: frame count of each sequence that was read.
        digests: digest of each sequence that was read.
    """

    data: GaitDataset
    numbers: Sequence[int]
    networks: Sequence[Embed]
    frames: Budget
    done: dict[int, list[Tensor]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)

    def read(
        self,
        frame_shape: tuple[int, ...],
        frames: FrameCounts | int | None,
        advance: Callable[[], None],
    ) -> Iterator[Numbered]:
        """Yield the sequences as batches of one."""
        for number in self.numbers:
            silhouettes, record = self.data[number]
            _check_shape(silhouettes, record, frame_shape)
            self.lengths[number], self.digests[number] = len(silhouettes), sequence_digest(silhouettes)
            try:
                batch = network_batch(silhouettes, record, frame_shape, frames)
            except DataError as error:
                self.refused[number] = str(error)
                advance()
            else:
                yield number, batch

    def embed(self, group: list[Numbered]) -> int:
        """Embed a group of sequences of equal shape; return their number."""
        numbers = [number for number, _ in group]
        records = [self.data.records[number] for number in numbers]
        try:
            batches = [batch for _, batch in group]
            with self.frames.taken(sum(batch.shape[1] for batch in batches)):
                outputs = [_embed(network, batches, records) for network in self.networks]
        except QgaitError as error:
            if len(group) > 1:
                for one in group:
                    self.embed([one])
            elif isinstance(error, DataError):
                self.refused[numbers[0]] = str(error)
            else:
                raise
        else:
            rows = ([output[row : row + 1] for output in outputs] for row in range(len(group)))
            self.done.update(zip(numbers, rows, strict=True))
        return len(group)

    def finish(self) -> Embedded:
        """Return the embeddings in the order of the sequences; none if no sequence was embedded."""
        refused, kept = [self.refused[number] for number in sorted(self.refused)], sorted(self.done)
        columns = zip(*(self.done[number] for number in kept), strict=True)
        lengths = [self.lengths[number] for number in kept]
        digests = [self.digests[number] for number in kept]
        return Embedded([torch.cat(column) for column in columns], kept, refused, lengths, digests)


def _join(parts: Sequence[Embedded]) -> Embedded:
    """Return the embeddings of all processes, in the order of the sequences.

    Raises:
        DataError: there is no sequence that all networks take.
    """
    kept = [index for part in parts for index in part.kept]
    refused = [line for part in parts for line in part.refused]
    lengths = [length for part in parts for length in part.lengths]
    digests = [digest for part in parts for digest in part.digests]
    if not kept:
        raise DataError(f"no sequence can be embedded; {refused[0] if refused else 'the data have none'}")
    if len(parts) == 1:
        return parts[0]
    by_network = zip(*(part.embeddings for part in parts if part.kept), strict=True)
    return Embedded([torch.cat(embeddings) for embeddings in by_network], kept, refused, lengths, digests)


def _embed(network: Embed, batches: list[Tensor], records: Sequence[SequenceRecord]) -> Tensor:
    """Return the embeddings ``[n, c, p]`` of sequences of equal length."""
    try:
        with torch.inference_mode():
            embeddings = as_parts(network(torch.cat(batches))).cpu()
    except QgaitError:
        raise
    except Exception as error:  # whatever a network raises at a length that it does not take
        raise DataError(
            f"{records[0].name}: the network does not run on {batches[0].shape[1]} frames "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if not bool(torch.isfinite(embeddings).all()):
        raise DataError(f"{records[0].name}: the embedding has NaN or infinite values")
    if len(embeddings) != len(batches):
        raise DataError(
            f"{records[0].name}: the network gives {len(embeddings)} embeddings for {len(batches)} sequences"
        )
    return embeddings


def _check_shape(silhouettes: Silhouettes, record: SequenceRecord, frame_shape: tuple[int, ...]) -> None:
    if silhouettes.shape[1:] != frame_shape:
        raise DataError(
            f"{record.name}: silhouettes of {shape_text(silhouettes.shape[1:])}, the network and the other "
            f"sequences have {shape_text(frame_shape)} (square ones lose their empty columns)"
        )


def as_parts(embedding: Tensor) -> Tensor:
    """Return an embedding ``[n, c]`` as ``[n, c, 1]``, and ``[n, c, p]`` unchanged."""
    return embedding[..., None] if embedding.ndim == 2 else embedding
