"""Data of a folder in the OpenGait layout, divided by its partition file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.gait.data.layout import list_subjects
from qgait_ptq.gait.data.names import composed
from qgait_ptq.gait.data.notes import (
    NO_FOLDER,
    NO_OTHER_VIEW,
    NO_PROBE,
    NOT_IN_GALLERY,
    NOT_LISTED,
    OTHER_CONDITION,
    UNUSED_KEY,
    DataNotes,
    some_names,
)
from qgait_ptq.gait.data.partition import Partition, read_partition
from qgait_ptq.gait.data.sequences import DEFAULT_READING, Reading
from qgait_ptq.gait.metric_names import Metric, check_metric
from qgait_ptq.gait.protocols import TestSet, get_protocol, make_test_set, probe_name, views_by_subject
from qgait_ptq.system.reading import as_path


def load_directory(
    root: str | Path,
    partition: str | Path | None = None,
    protocol: str = "casia-b",
    metric: Metric = "euclidean",
    reading: Reading = DEFAULT_READING,
) -> GaitData:
    """Load data in the OpenGait layout: TRAIN_SET for calibration, TEST_SET for tests.

    Args:
        root: root folder of the data set.
        partition: path of the partition file; None for ``partition.json`` in the root.
        protocol: name of the protocol.
        metric: distance between embeddings.
        reading: settings of reading.

    Raises:
        ConfigError: the protocol or the metric is unknown.
        DataError: the data are not valid; see `GaitDataset.from_directory` and `make_test_set`.
    """
    check_metric(metric)
    rules, root = get_protocol(protocol), as_path(root, "the data set", DataError)
    if not root.is_dir():
        raise DataError(f"{root}: the folder does not exist; pass the root folder of the data set")
    split_file = (
        as_path(partition, "the partition", DataError) if partition is not None else root / "partition.json"
    )
    split = read_partition(split_file)
    if not split.train:
        raise DataError(f"{split_file}: TRAIN_SET is empty; calibration needs at least one subject")
    if not split.test:
        raise DataError(f"{split_file}: TEST_SET is empty; move some subjects of TRAIN_SET there")
    notes = DataNotes()
    train, tested = _present_identities(root, split, split_file, notes)
    calibration = GaitDataset.from_directory(root, train, reading)
    test = GaitDataset.from_directory(root, tested, reading)
    description = (
        f"{root}: {len(calibration.subjects)} subjects for calibration, {len(test.subjects)} for tests "
        f"({len(test)} sequences)"
    )
    notes += calibration.notes + test.notes
    try:
        test_set = make_test_set(test, rules, split.probes)
    except DataError as error:  # what was left out can be the reason
        raise DataError(f"{error}.{notes.text}" if notes.text else str(error)) from None
    notes += _protocol_notes(test, test_set, split)
    return GaitData(
        calibration,
        test,
        test_set,
        metric,
        description,
        reading.cut_columns,
        reading.modalities,
        notes,
        longest=reading.longest,
    )


def _present_identities(
    root: Path, split: Partition, split_file: Path, notes: DataNotes
) -> tuple[list[str], list[str]]:
    """Return the folders of TRAIN_SET and of TEST_SET; notes receive identities that have none.

    Raises:
        DataError: no identity of one of them has a folder.
    """
    present = list_subjects(root, notes)
    # A name that is written in the same way comes first.
    folders = {composed(name): name for name in present} | {name: name for name in present}
    found: list[list[str]] = []
    for key, names in (("TRAIN_SET", split.train), ("TEST_SET", split.test)):
        places = {name: folders.get(name, folders.get(composed(name))) for name in names}
        found.append([place for place in places.values() if place is not None])
        if not found[-1]:
            raise DataError(
                f"{root}: no identity of {key} in {split_file} has a folder ({some_names(names)}; "
                f"folders: {some_names(present) or 'none'}). Use the partition of this data set"
            )
        for name in (name for name, place in places.items() if place is None):
            notes.add(NO_FOLDER, name)
    train, test = found
    _check_separate(root, (*train, *test))
    for name in sorted(set(present).difference(train, test)):
        notes.add(NOT_LISTED, name)
    return train, test


def _check_separate(root: Path, folders: Iterable[str]) -> None:
    """Check that no two identities are the same folder, by a link or by two ways of writing its name.

    Raises:
        DataError: names both.
    """
    seen: dict[str, str] = {}
    for folder in folders:
        place = os.path.realpath(root / folder)
        if place in seen:
            raise DataError(
                f"{root}: two identities of the partition are one folder "
                f"({some_names([seen[place], folder])}); list it once, since nobody may have two names or "
                "be in both sets"
            )
        seen[place] = folder


def _protocol_notes(test: GaitDataset, test_set: TestSet, split: Partition) -> DataNotes:
    """Return what a protocol does not use of the test sequences and of the partition."""
    notes = DataNotes()
    compared = {*test_set.gallery, *test_set.all_probes}
    for index, record in enumerate(test.records):
        if index not in compared:
            notes.add(OTHER_CONDITION, record.condition)
    gallery_views = views_by_subject(test.records[index] for index in test_set.gallery)
    for record in (test.records[index] for index in test_set.all_probes):
        if record.subject not in gallery_views:
            notes.add(NOT_IN_GALLERY, record.name)
        elif test_set.protocol.per_view_pair and gallery_views[record.subject] == {record.view}:
            notes.add(NO_OTHER_VIEW, record.name)
    unused_keys = tuple(split.other_keys)
    if test_set.protocol.listed_probes:
        names = {probe_name(record) for record in test.records}
        for name in split.probes:
            if composed(name) not in names:
                notes.add(NO_PROBE, name)
    elif split.probes:
        unused_keys = ("PROBE_SET", *unused_keys)
    for key in unused_keys:
        notes.add(UNUSED_KEY, key)
    return notes
