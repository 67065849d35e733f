"""A labelled set of silhouette sequences that are read on demand.

`GaitDataset` is a list of records. A record has the labels of a sequence and a function that loads it.
Loaded sequences are not kept, so memory does not grow with the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.layout import Place, find_sequences, list_subjects
from qgait_ptq.gait.data.modalities import check_packed, read_modalities, read_packed, require_layout
from qgait_ptq.gait.data.notes import FEWER_FILES, DataNotes, some_names
from qgait_ptq.gait.data.pairs import check_label, check_sequence
from qgait_ptq.gait.data.sequences import DEFAULT_READING, Reading, read_sequence
from qgait_ptq.graph.frame_layout import FrameLayout, layout_of
from qgait_ptq.system.exchanging import share_of
from qgait_ptq.system.reading import as_path

Silhouettes = NDArray[Any]  # uint8; float32 for raw values


@dataclass(frozen=True)
class SequenceRecord:
    """Labels of one sequence, and a function that loads it.

    Attributes:
        subject: name of the identity.
        condition: OpenGait's *type*, such as ``nm-01``: walking condition and number of the walk.
        view: camera angle or name, such as ``090``.
        load: function that returns the silhouettes, ``[s, h, w]`` uint8 in 0..255.
        sources: array files of the modalities, or the folder of PNG frames; empty for a sequence in memory.
    """

    subject: str
    condition: str
    view: str
    load: Callable[[], Silhouettes] = field(repr=False)
    sources: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Return ``subject/condition/view``, as in the directory layout."""
        return f"{self.subject}/{self.condition}/{self.view}"


class PackedSilhouettes:
    """Binary silhouettes in memory with one bit per pixel. A call returns the silhouettes."""

    def __init__(self, silhouettes: Silhouettes) -> None:
        self.width = silhouettes.shape[-1]
        self.bits = np.packbits(silhouettes > 0, axis=-1)

    @classmethod
    def from_bits(cls, bits: NDArray[np.uint8], width: int) -> PackedSilhouettes:
        """Return silhouettes of a width from bits packed along the last axis, as `numpy.packbits` does."""
        packed = cls(np.zeros((*bits.shape[:-1], 0), np.uint8))
        packed.width, packed.bits = width, bits
        return packed

    def __repr__(self) -> str:
        return f"PackedSilhouettes({[*self.bits.shape[:-1], self.width]})"

    def __call__(self) -> Silhouettes:
        """Return the silhouettes, ``[s, h, w]`` in {0, 255}."""
        return np.unpackbits(self.bits, axis=-1)[..., : self.width] * np.uint8(255)


class GaitDataset:
    """Labelled silhouette sequences, read one at a time.

    Iteration and indexing return ``(silhouettes [s, h, w] uint8, record)``.

    Example:
        >>> import numpy as np
        >>> walk = np.zeros((30, 64, 44), np.uint8)
        >>> data = GaitDataset.from_pairs([(walk, "anna"), (walk, "anna"), (walk, "ben")])
        >>> len(data), data.subjects
        (3, ['anna', 'ben'])
    """

    def __init__(
        self,
        records: Sequence[SequenceRecord],
        description: str = "",
        layout: FrameLayout | None = None,
        notes: DataNotes | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Make a set of records.

        Args:
            records: records in the order of iteration.
            description: origin of the data in one line, for reports.
            layout: layout of several inputs, which records return joined as ``[s, F]`` float32; else None.
            notes: what was left out when the set was read.
            reading: settings with which the set was read; None for sequences that were not read from files.
        """
        self.records = list(records)
        self.description = description or f"{len(self.records)} sequences"
        self.layout = layout
        self.notes = notes or DataNotes()
        self.reading = reading

    @classmethod
    def from_directory(
        cls,
        root: str | Path,
        subjects: Iterable[str] | None = None,
        reading: Reading = DEFAULT_READING,
    ) -> GaitDataset:
        """Find the sequences of an OpenGait layout, ``root/subject/type/view/*.pkl``.

        Array files may be pkl, npy or npz; a view folder may hold png frames instead. Where a view folder
        holds several array files (modalities, sorted by name), the first is taken, unless told otherwise;
        several are the inputs of a network that takes several. Suffixes may be in upper case. Files are in
        natural order: ``2.png`` comes before ``10.png``. Hidden names and files of operating systems are
        ignored. All else that is left out is in ``notes`` and in ``summary``.

        Args:
            root: root folder of the data set.
            subjects: names of the subjects to find; None for all.
            reading: settings of reading, such as modalities and columns to cut.

        Raises:
            DataError: no such folder, a subject without a folder or named twice, or no sequence at all.
        """
        root = as_path(root, "the data set", DataError)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of sequences")
        notes = DataNotes()
        present = list_subjects(root, notes)
        wanted = present
        if subjects is not None:
            wanted, notes = list(subjects), DataNotes()
        missing = sorted(set(wanted) - set(present))
        if missing:
            raise DataError(
                f"{root}: {len(missing)} subjects have no folder ({some_names(missing)}); "
                "does the partition belong to this data set?"
            )
        repeated = [subject for subject, count in Counter(wanted).items() if count > 1]
        if repeated:
            raise DataError(
                f"{root}: {len(repeated)} subjects are named twice ({some_names(repeated)}); name each once"
            )
        found = [
            place for subject in wanted for place in find_sequences(root, subject, reading.modalities, notes)
        ]
        if not found:
            seen = "".join(f"; found {line}" for line in notes.lines)
            raise DataError(
                f"{root}: no sequence found in {len(wanted)} subject folders ({some_names(wanted)}); "
                f"the layout is root/subject/type/view/*.pkl{seen}"
            )
        most = max(place.array_files for place in found)
        for place in found:
            if 0 < place.array_files < most:
                notes.add(FEWER_FILES, place.name)
        layout = (
            layout_of(read_modalities(found[0].sources, reading)) if len(reading.modalities) > 1 else None
        )
        records = [_to_record(place, reading, layout) for place in found]
        described = f"{root} ({len({place.subject for place in found})} subjects, {len(records)} sequences)"
        return cls(records, described, layout, notes, reading)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[Any, Any]], raw: bool = False) -> GaitDataset:
        """Make a set in memory from ``(sequence [s, h, w], label)`` pairs.

        Args:
            pairs: pairs of a sequence and a label. A sequence is an array. For a network with several inputs,
                it is a tuple of arrays, or a dictionary of arrays by the names of the file's inputs; see
                `check_modalities`. A label is a text or an integer, which names the person. It can also be a
                `SequenceRecord`, as iteration over a data set gives it. Then its subject is the label.
            raw: whether arrays ``[s, ...]`` are unscaled values, such as poses, instead of silhouettes.

        Raises:
            DataError: an item is not a pair, a sequence is not valid, or a label is of another type.
        """
        records: list[SequenceRecord] = []
        layout: FrameLayout | None = None
        try:
            items = iter(pairs)
        except TypeError:
            raise DataError(f"the data are a {type(pairs).__name__}, not (sequence, label) pairs") from None
        for index, pair in enumerate(items):
            where = f"sequence {index}"
            try:
                sequence, label = pair
            except (TypeError, ValueError):
                raise DataError(f"item {index} of the data is not a pair (sequence, label)") from None
            load, own = check_sequence(sequence, where, raw)
            if records and (own is None) != (layout is None):
                raise DataError(f"{where}: the number of arrays differs from the sequences before")
            if own is not None:
                layout = layout or own
                require_layout(own, layout, where)
            subject = label.subject if isinstance(label, SequenceRecord) else check_label(label, where)
            records.append(SequenceRecord(subject, f"seq-{index:04d}", "000", load))
        return cls(records, layout=layout)

    def __repr__(self) -> str:
        return f"GaitDataset({self.counts})"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Silhouettes, SequenceRecord]:
        record = self.records[index]
        sequence = record.load()
        if self.layout is not None:
            check_packed(sequence, self.layout, record.name)
        return sequence, record

    def __iter__(self) -> Iterator[tuple[Silhouettes, SequenceRecord]]:
        for index in range(len(self)):
            yield self[index]

    @property
    def subjects(self) -> list[str]:
        """Return the names of the identities, sorted."""
        return sorted({record.subject for record in self.records})

    @property
    def summary(self) -> str:
        """One line: the number of sequences, and what was left out when they were read."""
        return f"data: {self.counts}.{self.notes.text}"

    @property
    def counts(self) -> str:
        """The number of sequences and identities, such as ``8 sequences of 2 identities``."""
        sequences, identities = len(self), len(self.subjects)
        return (
            f"{sequences} sequence{'s' if sequences != 1 else ''} of "
            f"{identities} {'identities' if identities != 1 else 'identity'}"
        )

    def where(self, keep: Callable[[SequenceRecord], bool]) -> GaitDataset:
        """Return the set of records for which `keep` is true."""
        return self._with([record for record in self.records if keep(record)])

    def limited(self, largest: Mapping[str, int]) -> GaitDataset:
        """Return the set with the largest integers of inputs, by name. Reading checks them."""
        layout = None if self.layout is None else self.layout.limited(largest)
        return GaitDataset(self.records, self.description, layout, self.notes, self.reading)

    def choose(self, count: int, seed: int = 0, *, together: int = 1) -> GaitDataset:
        """Draw `count` random sequences, spread evenly over the identities.

        A set with at most `count` sequences is returned completely, in its order.

        Args:
            count: number of sequences.
            seed: random seed of the choice.
            together: sequences of one identity that are drawn together. Where there are too many identities
                to draw so many of each, fewer identities are drawn.
        """
        rng = np.random.default_rng(seed)
        by_subject: dict[str, list[int]] = {}
        for index, record in enumerate(self.records):
            by_subject.setdefault(record.subject, []).append(index)
        subjects = sorted(by_subject)
        queues = [
            rng.permutation(by_subject[subjects[position]]).tolist()
            for position in rng.permutation(len(subjects))
        ]
        chosen: list[int] = []
        groups = [queue for queue in queues if len(queue) >= together][: count // together]
        for _ in range(together if together > 1 else 0):
            chosen += [queue.pop() for queue in groups]
        queues = [queue for queue in queues if queue]
        while len(chosen) < count and queues:
            chosen += [queue.pop() for queue in queues[: count - len(chosen)]]
            queues = [queue for queue in queues if queue]
        return self._with([self.records[i] for i in sorted(chosen)])

    def share(self) -> GaitDataset:
        """Return the sequences that are this process's share in a run of several processes."""
        return self._with(list(share_of(self.records)))

    def _with(self, records: list[SequenceRecord]) -> GaitDataset:
        """Return a set of some of the records."""
        return GaitDataset(records, self.description, self.layout, self.notes, self.reading)


def _to_record(place: Place, reading: Reading, layout: FrameLayout | None) -> SequenceRecord:
    load: Callable[[], Silhouettes]
    if layout is None:
        (source,) = place.sources.values()
        load = partial(read_sequence, source, reading)
    else:
        load = partial(read_packed, place.sources, reading, layout)
    return SequenceRecord(place.subject, place.condition, place.view, load, tuple(place.sources.values()))
