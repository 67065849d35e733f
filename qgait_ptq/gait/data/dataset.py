"""A labelled set of silhouette sequences that is read when it is needed.

`GaitDataset` is a list of records; a record knows its labels and how to load its silhouettes. Nothing is
kept after a read, so memory does not grow with the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.modalities import (
    as_modalities,
    check_layout,
    check_modalities,
    modality_name,
    read_modalities,
    read_packed,
)
from qgait_ptq.gait.data.sequences import (
    ARRAY_SUFFIXES,
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
    ) -> None:
        """Hold records.

        Args:
            records: the sequences, in the order in which they are iterated.
            description: one line for reports: where the data come from.
            layout: of sequences of several inputs, which records give side by side, ``[s, F]`` float32.
        """
        self.records = list(records)
        self.description = description or f"{len(self.records)} sequences"
        self.layout = layout

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
        several are the inputs of a network that takes several.

        Args:
            root: the top folder.
            subjects: take these only; None takes all.
            reading: which file of a folder, and how it is cut.

        Raises:
            DataError: no such folder, a subject without a folder, or no sequence at all.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of sequences")
        present = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        wanted = present if subjects is None else list(subjects)
        missing = sorted(set(wanted) - set(present))
        if missing:
            raise DataError(
                f"{root}: {len(missing)} subjects have no folder ({', '.join(missing[:5])}); "
                "does the partition belong to this data set?"
            )
        found = [place for subject in wanted for place in _find_sequences(root / subject, reading)]
        if not found:
            raise DataError(f"{root}: no sequence found; the layout is root/subject/type/view/*.pkl")
        layout = (
            layout_of(read_modalities(found[0].sources, reading)) if len(reading.modalities) > 1 else None
        )
        records = [place.to_record(reading, layout) for place in found]
        return cls(records, f"{root} ({len(wanted)} subjects, {len(records)} sequences)", layout)

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

    def where(self, keep: Callable[[SequenceRecord], bool]) -> GaitDataset:
        """The records for which `keep` says yes."""
        return GaitDataset([record for record in self.records if keep(record)], self.description, self.layout)

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
        return GaitDataset([self.records[i] for i in sorted(chosen)], self.description, self.layout)


def _identity(array: Silhouettes) -> Silhouettes:
    return array


@dataclass(frozen=True)
class _Place:
    """Where a sequence lies: the files of its modalities, by the names of a network's inputs."""

    subject: str
    condition: str
    view: str
    sources: Mapping[str, Path]

    def to_record(self, reading: Reading, layout: FrameLayout | None) -> SequenceRecord:
        load: Callable[[], Silhouettes]
        if layout is None:
            (source,) = self.sources.values()
            load = partial(read_sequence, source, reading)
        else:
            load = partial(read_packed, self.sources, reading, layout)
        return SequenceRecord(self.subject, self.condition, self.view, load, tuple(self.sources.values()))


def _find_sequences(folder: Path, reading: Reading) -> Iterator[_Place]:
    """The sequences of one subject."""
    for condition in _folders(folder):
        for view in _folders(condition):
            arrays = sorted(file for file in view.iterdir() if file.suffix in ARRAY_SUFFIXES)
            if arrays:
                sources = {
                    modality_name(index): arrays[index] for index in reading.modalities if index < len(arrays)
                }
                if len(sources) < len(reading.modalities):
                    raise DataError(
                        f"{view}: holds {len(arrays)} array files, no modality {max(reading.modalities)}"
                    )
            elif any(view.glob("*.png")):
                if reading.modalities != (0,):
                    raise DataError(f"{view}: holds png frames, which are one modality")
                sources = {modality_name(0): view}
            else:
                continue
            yield _Place(folder.name, condition.name, view.name, sources)


def _folders(parent: Path) -> list[Path]:
    return sorted(entry for entry in parent.iterdir() if entry.is_dir())
