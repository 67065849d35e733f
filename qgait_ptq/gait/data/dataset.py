"""A labelled set of silhouette sequences that is read when it is needed.

`GaitDataset` is a list of records; a record knows its labels and how to load its silhouettes. Nothing is
kept after a read, so memory does not grow with the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.layout import Place, find_sequences, list_subjects
from qgait_ptq.gait.data.modalities import (
    as_modalities,
    check_layout,
    check_modalities,
    read_modalities,
    read_packed,
)
from qgait_ptq.gait.data.notes import FEWER_FILES, DataNotes, some_names
from qgait_ptq.gait.data.sequences import (
    DEFAULT_READING,
    Reading,
    check_silhouettes,
    check_values,
    cut_width,
    read_sequence,
)
from qgait_ptq.graph.frame_layout import FrameLayout, layout_of

Silhouettes = NDArray[Any]  # uint8; float32 where raw values were asked for


@dataclass(frozen=True)
class SequenceRecord:
    """One sequence: who, how, from where, and the way to its silhouettes.

    Attributes:
        subject: the identity.
        condition: OpenGait's *type*, such as ``nm-01``; the walking condition and the number of the walk.
        view: camera angle or name, such as ``090``.
        load: gives the silhouettes, ``[s, h, w]`` uint8 in 0..255.
        sources: the array files of the modalities, or the folder of png frames; empty for a sequence in
            memory.
    """

    subject: str
    condition: str
    view: str
    load: Callable[[], Silhouettes]
    sources: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """``subject/condition/view``, as in the directory layout."""
        return f"{self.subject}/{self.condition}/{self.view}"


class PackedSilhouettes:
    """Binary silhouettes in memory, one bit a pixel; calling it gives them back."""

    def __init__(self, silhouettes: Silhouettes) -> None:
        self.width = silhouettes.shape[-1]
        self.bits = np.packbits(silhouettes > 0, axis=-1)

    def __call__(self) -> Silhouettes:
        """Unpack to ``[s, h, w]`` in {0, 255}."""
        return np.unpackbits(self.bits, axis=-1)[..., : self.width] * np.uint8(255)


class GaitDataset:
    """Labelled silhouette sequences, read one at a time.

    Iterating or indexing gives ``(silhouettes [s, h, w] uint8, record)``.

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
    ) -> None:
        """Hold records.

        Args:
            records: the sequences, in the order in which they are iterated.
            description: one line for reports: where the data come from.
            layout: of sequences of several inputs, which records give side by side, ``[s, F]`` float32.
            notes: what was left out when the set was read.
        """
        self.records = list(records)
        self.description = description or f"{len(self.records)} sequences"
        self.layout = layout
        self.notes = notes or DataNotes()

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
            root: the top folder.
            subjects: take these only; None takes all.
            reading: which file of a folder, and how it is cut.

        Raises:
            DataError: no such folder, a subject without a folder or named twice, or no sequence at all.
        """
        root = Path(root)
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
        return cls(records, described, layout, notes)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[Any, Any]], raw: bool = False) -> GaitDataset:
        """Make a set in memory from ``(sequence [s, h, w], label)`` pairs.

        Args:
            pairs: of sequences and labels. A sequence is an array; or for a network of several inputs a tuple
                of arrays, or a dictionary of them by the names that the file's inputs shall have, see
                `check_modalities`.
            raw: take arrays ``[s, ...]`` as they are, such as poses, instead of as silhouettes.

        Raises:
            DataError: something is not a pair, or not a silhouette sequence.
        """
        records: list[SequenceRecord] = []
        layout: FrameLayout | None = None
        for index, pair in enumerate(pairs):
            try:
                sequence, label = pair
            except (TypeError, ValueError):
                raise DataError(f"item {index} of the data is not a (sequence, label) pair") from None
            where, several = f"sequence {index}", as_modalities(sequence)
            if records and (several is None) != (layout is None):
                raise DataError(f"{where}: one array, or several, as the sequences before it")
            load: Callable[[], Silhouettes]
            if several is not None:
                arrays = {
                    name: cut_width(array) if array.dtype == np.uint8 else array
                    for name, array in check_modalities(several, where, raw).items()
                }
                layout = layout or layout_of(arrays)
                check_layout(arrays, layout, where)
                load = partial(layout.pack, list(arrays.values()))
            else:
                array = np.asarray(sequence)
                array = check_values(array, where) if raw else cut_width(check_silhouettes(array, where))
                load = partial(_identity, array)
            records.append(SequenceRecord(str(label), f"seq-{index:04d}", "000", load))
        return cls(records, layout=layout)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Silhouettes, SequenceRecord]:
        record = self.records[index]
        return record.load(), record

    def __iter__(self) -> Iterator[tuple[Silhouettes, SequenceRecord]]:
        for index in range(len(self)):
            yield self[index]

    @property
    def subjects(self) -> list[str]:
        """The identities, sorted."""
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
        """The records for which `keep` says yes."""
        return self._with([record for record in self.records if keep(record)])

    def choose(self, count: int, seed: int = 0) -> GaitDataset:
        """Draw `count` sequences, spread evenly over the identities and at random within each.

        All are taken, in the same order, where the set has no more than `count`.
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
        while len(chosen) < count and queues:
            chosen += [queue.pop() for queue in queues[: count - len(chosen)]]
            queues = [queue for queue in queues if queue]
        return self._with([self.records[i] for i in sorted(chosen)])

    def _with(self, records: list[SequenceRecord]) -> GaitDataset:
        """Return a set of some of the records."""
        return GaitDataset(records, self.description, self.layout, self.notes)


def _identity(array: Silhouettes) -> Silhouettes:
    return array


def _to_record(place: Place, reading: Reading, layout: FrameLayout | None) -> SequenceRecord:
    load: Callable[[], Silhouettes]
    if layout is None:
        (source,) = place.sources.values()
        load = partial(read_sequence, source, reading)
    else:
        load = partial(read_packed, place.sources, reading, layout)
    return SequenceRecord(place.subject, place.condition, place.view, load, tuple(place.sources.values()))
