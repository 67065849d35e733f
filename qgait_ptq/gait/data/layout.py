"""The folder layout ``root/subject/type/view``: where sequences are, and what else is found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.modalities import modality_name
from qgait_ptq.gait.data.names import is_broken, is_folder, is_ignored, natural_key, printable, suffix_of
from qgait_ptq.gait.data.notes import (
    BROKEN_LINK,
    FRAME_BESIDE_ARRAY,
    NO_SEQUENCE,
    OTHER_FILE,
    OTHER_IMAGE,
    OTHER_MODALITY,
    OUTSIDE,
    TOO_DEEP,
    DataNotes,
)
from qgait_ptq.gait.data.png_frames import FRAME_SUFFIX
from qgait_ptq.gait.data.sequences import ARRAY_SUFFIXES

OTHER_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".pbm", ".ppm")


@dataclass(frozen=True)
class Place:
    """Location of a sequence in a folder.

    Attributes:
        subject: name of the first folder.
        condition: name of the second folder.
        view: name of the third folder.
        sources: the files of the modalities by the names of a network's inputs, or the folder of frames.
        array_files: number of array files in the view folder.
    """

    subject: str
    condition: str
    view: str
    sources: Mapping[str, Path]
    array_files: int

    @property
    def name(self) -> str:
        """``subject/condition/view``."""
        return f"{self.subject}/{self.condition}/{self.view}"


def list_subjects(root: Path, notes: DataNotes) -> list[str]:
    """Return the names of the folders in a root, sorted.

    Args:
        root: the top folder.
        notes: receives sequence files and broken links in the root.

    Raises:
        DataError: the folder cannot be read.
    """
    folders, files, broken = _list_folder(root)
    for link in broken:
        notes.add(BROKEN_LINK, link)
    for file in files:
        if suffix_of(file) in (*ARRAY_SUFFIXES, FRAME_SUFFIX, *OTHER_IMAGE_SUFFIXES):
            notes.add(OUTSIDE, file)  # other files belong there, such as the partition
    return folders


def find_sequences(root: Path, subject: str, modalities: Sequence[int], notes: DataNotes) -> Iterator[Place]:
    """Find the sequences of one subject.

    Args:
        root: the top folder.
        subject: name of a folder in it.
        modalities: which array files of a view folder are taken.
        notes: receives what is left out.

    Raises:
        DataError: a folder cannot be read, lacks a modality, or has a name that is not UTF-8.
    """
    for condition in _inner_folders(root, subject, notes):
        for view in _inner_folders(root, f"{subject}/{condition}", notes):
            name = f"{subject}/{condition}/{view}"
            if printable(name) != name:
                raise DataError(
                    f"{printable(str(root / name))}: the name is not UTF-8 text; rename the folder"
                )
            sources, array_files = _find_in_view(root, name, modalities, notes)
            if sources:
                yield Place(subject, condition, view, sources, array_files)
            else:
                notes.add(NO_SEQUENCE, name)


def _find_in_view(
    root: Path, name: str, modalities: Sequence[int], notes: DataNotes
) -> tuple[dict[str, Path], int]:
    """Return the sources of a sequence and the number of array files; no sources if there are none.

    A broken link counts as an array file, so that the numbers of the others stay.
    """
    view = root / name
    folders, files, broken = _list_folder(view)
    arrays = [link for link in broken if suffix_of(link) in ARRAY_SUFFIXES]
    frames: list[str] = []
    for folder in folders:
        notes.add(TOO_DEEP, f"{name}/{folder}")
    for link in broken:
        notes.add(BROKEN_LINK, f"{name}/{link}")
    for file in files:
        suffix = suffix_of(file)
        if suffix == FRAME_SUFFIX:
            frames.append(file)
        elif suffix in ARRAY_SUFFIXES:
            arrays.append(file)
        else:
            notes.add(OTHER_IMAGE if suffix in OTHER_IMAGE_SUFFIXES else OTHER_FILE, f"{name}/{file}")
    if not arrays:
        if frames and tuple(modalities) != (0,):
            raise DataError(f"{view}: holds png frames, which are one modality")
        return ({modality_name(0): view} if frames else {}), 0
    if max(modalities) >= len(arrays):
        raise DataError(f"{view}: {len(arrays)} array files; modality {max(modalities)} is missing")
    # With suffixes: OpenGait, whose configurations count files, has ``a-b.pkl`` before ``a.pkl``, too.
    arrays.sort(key=partial(natural_key, with_suffix=True))
    for index, file in enumerate(arrays):
        if index not in modalities and file not in broken:
            notes.add(OTHER_MODALITY, f"{name}/{file}")
    for file in frames:
        notes.add(FRAME_BESIDE_ARRAY, f"{name}/{file}")
    chosen = {modality_name(index): arrays[index] for index in modalities}
    is_whole = set(broken).isdisjoint(chosen.values())
    return {key: view / file for key, file in chosen.items()} if is_whole else {}, len(arrays)


def _inner_folders(root: Path, name: str, notes: DataNotes) -> list[str]:
    """Return the folders of a subject or of a condition. Notes receive its files."""
    folders, files, broken = _list_folder(root / name)
    for link in broken:
        notes.add(BROKEN_LINK, f"{name}/{link}")
    for file in files:
        notes.add(OUTSIDE, f"{name}/{file}")
    if not folders:
        notes.add(NO_SEQUENCE, name)
    return folders


def _list_folder(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the folders, files and broken links of a folder, sorted, without ignored names."""
    folders: list[str] = []
    files: list[str] = []
    broken: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_ignored(entry.name):
                    kind = folders if is_folder(entry) else broken if is_broken(entry) else files
                    kind.append(entry.name)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{printable(str(folder))}: the folder cannot be read ({reason}); check its permissions"
        ) from None
    return sorted(folders), sorted(files), sorted(broken)
