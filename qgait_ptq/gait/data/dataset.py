"""A labelled set of silhouette sequences that are read on demand.

`GaitDataset` is a list of records. A record has the labels of a sequence and a function that loads it.
Loaded sequences are not kept, so memory does not grow with the set.
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
    load: Callable[[], Silhouettes]
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
    ) -> None:
        """Make a set of records.

        Args:
            records: records in the order of iteration.
            description: origin of the data in one line, for reports.
            layout: layout of several inputs, which records return joined as ``[s, F]`` float32; else None.
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

        Array files can be pkl, npy or npz; a view folder can have PNG frames instead. Several array files in
        a view folder are modalities, sorted by name. The first is read unless `reading` says otherwise.
        Several modalities are the inputs of a network with several inputs.

        Args:
            root: root folder of the data set.
            subjects: names of the subjects to find; None for all.
            reading: settings of reading, such as modalities and columns to cut.

        Raises:
            DataError: the folder does not exist, a subject has no folder, or there is no sequence.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root}: the folder does not exist; pass the root folder of the data set")
        present = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        names = present if subjects is None else list(subjects)
        missing = sorted(set(names) - set(present))
        if missing:
            raise DataError(
                f"{root}: {len(missing)} subjects have no folder ({', '.join(missing[:5])}); "
                "check that the partition belongs to this data set"
            )
        located = [one for subject in names for one in _find_sequences(root / subject, reading)]
        if not located:
            raise DataError(f"{root}: no sequence found; the layout must be root/subject/type/view/*.pkl")
        layout = (
            layout_of(read_modalities(located[0].sources, reading)) if len(reading.modalities) > 1 else None
        )
        records = [one.to_record(reading, layout) for one in located]
        return cls(records, f"{root} ({len(names)} subjects, {len(records)} sequences)", layout)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[Any, Any]], raw: bool = False) -> GaitDataset:
        """Make a set in memory from ``(sequence [s, h, w], label)`` pairs.

        Args:
            pairs: pairs of a sequence and a label. A sequence is an array. For a network with several inputs,
                it is a tuple of arrays, or a dictionary of arrays by the names of the file's inputs; see
                `check_modalities`.
            raw: whether arrays ``[s, ...]`` are unscaled values, such as poses, instead of silhouettes.

        Raises:
            DataError: an item is not a pair, or a sequence is not valid.
        """
        records: list[SequenceRecord] = []
        layout: FrameLayout | None = None
        for index, pair in enumerate(pairs):
            try:
                sequence, label = pair
            except (TypeError, ValueError):
                raise DataError(f"item {index} of the data is not a pair (sequence, label)") from None
            where, several = f"sequence {index}", as_modalities(sequence)
            if records and (several is None) != (layout is None):
                raise DataError(f"{where}: the number of arrays differs from the sequences before")
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
        """Return the names of the identities, sorted."""
        return sorted({record.subject for record in self.records})

    def where(self, keep: Callable[[SequenceRecord], bool]) -> GaitDataset:
        """Return the set of records for which `keep` is true."""
        return GaitDataset([record for record in self.records if keep(record)], self.description, self.layout)

    def choose(self, count: int, seed: int = 0) -> GaitDataset:
        """Draw `count` random sequences, spread evenly over the identities.

        A set with at most `count` sequences is returned completely, in its order.
        """
        rng = np.random.default_rng(seed)
        queues = [
            list(rng.permutation([i for i, r in enumerate(self.records) if r.subject == subject]))
            for subject in rng.permutation(self.subjects)
        ]
        chosen: list[int] = []
        while len(chosen) < count and any(queues):
            for queue in queues:
                if queue and len(chosen) < count:
                    chosen.append(int(queue.pop()))
        return GaitDataset([self.records[i] for i in sorted(chosen)], self.description, self.layout)


def _identity(array: Silhouettes) -> Silhouettes:
    return array


@dataclass(frozen=True)
class _Located:
    """Labels and files of a sequence. Files are listed by the names of the network's inputs."""

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


def _find_sequences(folder: Path, reading: Reading) -> Iterator[_Located]:
    """Yield the sequences of one subject."""
    for condition in _folders(folder):
        for view in _folders(condition):
            arrays = sorted(file for file in view.iterdir() if file.suffix in ARRAY_SUFFIXES)
            if arrays:
                sources = {
                    modality_name(index): arrays[index] for index in reading.modalities if index < len(arrays)
                }
                if len(sources) < len(reading.modalities):
                    raise DataError(
                        f"{view}: {len(arrays)} array files; modality {max(reading.modalities)} is missing"
                    )
            elif any(view.glob("*.png")):
                if reading.modalities != (0,):
                    raise DataError(f"{view}: PNG frames are modality 0; other modalities need array files")
                sources = {modality_name(0): view}
            else:
                continue
            yield _Located(folder.name, condition.name, view.name, sources)


def _folders(parent: Path) -> list[Path]:
    return sorted(entry for entry in parent.iterdir() if entry.is_dir())
