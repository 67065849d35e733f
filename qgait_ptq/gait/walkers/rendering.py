"""Rendering of many walkers in parallel, to memory or to the OpenGait layout on disk."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.partition import Partition, read_partition
from qgait_ptq.gait.walkers.cached import decode_walks, encode_walks, walker_key
from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.population import (
    TRIALS,
    VIEWS,
    Split,
    WalkerLabel,
    WalkerSettings,
    render_identity,
)
from qgait_ptq.system.file_cache import FileCache
from qgait_ptq.system.locking import locked, temporary_folder
from qgait_ptq.system.workers import map_in_processes
from qgait_ptq.system.writing import make_folder, remove_empty, write_whole

ArrayFormat = Literal["pkl", "npz"]
PARTITION_KEYS = {Split.TRAIN: "TRAIN_SET", Split.CALIBRATION: "TRAIN_SET"}  # all others are TEST_SET

Rendered = list[tuple[WalkerLabel, NDArray[np.uint8]]]
Advance = Callable[[], None]


def render_identities(
    identities: Sequence[int],
    settings: WalkerSettings | None = None,
    trials: tuple[tuple[Condition, int], ...] = TRIALS,
    views_per_trial: int = len(VIEWS),
    workers: int = 1,
    cache: FileCache | None = None,
) -> Generator[Rendered, None, None]:
    """Render identities in order, each as a list of (label, silhouettes ``[s, 64, 64]``).

    Args:
        identities: numbers of the identities.
        settings: settings of the population; None for the defaults.
        trials: condition and number of each walk.
        views_per_trial: number of views of each walk.
        workers: number of processes; 1 for this process only. More processes need a main module that can be
            imported, such as a command or a script with a ``__main__`` guard.
        cache: cache to take identities from and to store them in; see `open_walker_cache`.
    """
    settings = settings or WalkerSettings()
    render = partial(_render_to_list, settings=settings, trials=trials, views_per_trial=views_per_trial)
    if cache is None:
        yield from _render_all(render, identities, workers)
        return
    keys = {identity: walker_key(identity, settings, trials, views_per_trial) for identity in identities}
    missing = [identity for identity, key in keys.items() if not cache.has(key)]
    with closing(_render_all(render, missing, workers)) as rendered:
        for identity, key in keys.items():
            content = None if identity in missing else cache.read(key)
            if content is not None:
                yield decode_walks(content)
                continue
            walks = next(rendered) if identity in missing else render(identity)
            cache.write(key, encode_walks(walks))
            yield walks


def write_walkers(
    root: Path,
    split: Split,
    identities: Sequence[int],
    settings: WalkerSettings | None = None,
    views_per_trial: int = len(VIEWS),
    array_format: ArrayFormat = "pkl",
    workers: int = 1,
    advance: Advance = lambda: None,
) -> int:
    """Write walkers in the OpenGait layout, ``root/subject/type/view/view.pkl``, with ``partition.json``.

    Splits in one root share its partition. Each subject is written completely or not at all.

    Args:
        root: root folder of the data set; it is created if needed.
        split: split of the identities, which determines their set in the partition.
        identities: numbers of the identities.
        settings: settings of the population; None for the defaults.
        views_per_trial: number of views of each walk.
        array_format: ``pkl`` for OpenGait, or the much smaller ``npz``.
        workers: number of processes.
        advance: function to call after each identity.

    Returns:
        The number of sequences written.

    Raises:
        DataError: the folder cannot be written, or its partition cannot be read.
        ConfigError: another run writes into the folder.
    """
    sequences = 0
    made: list[Path] = []
    with locked(root):
        partition = _read_partition(root / "partition.json")  # before minutes of rendering
        try:
            made = make_folder(root)
            rendered = render_identities(identities, settings, TRIALS, views_per_trial, workers)
            with temporary_folder(root) as beside, closing(rendered):
                for identity, walks in zip(identities, rendered, strict=True):
                    _write_subject(root / subject_name(identity), walks, array_format, beside)
                    sequences += len(walks)
                    advance()
            extended = _extended(partition, split, [subject_name(i) for i in identities])
            write_whole(root / "partition.json", (json.dumps(extended, indent=1) + "\n").encode())
        except OSError as error:
            raise DataError(
                f"{root}: walkers cannot be written ({error.strerror or error}); choose another folder"
            ) from None
        finally:
            remove_empty(made)
    return sequences


def subject_name(identity: int) -> str:
    """Return the folder name of an identity."""
    return f"{identity:05d}"


def condition_name(label: WalkerLabel) -> str:
    """Return the folder name of a walk, such as ``nm-01``."""
    return f"{label.condition}-{label.number:02d}"


def view_name(label: WalkerLabel) -> str:
    """Return the folder name of a view, such as ``090``."""
    return f"{label.view:03d}"


def _render_all(
    render: Callable[[int], Rendered], identities: Sequence[int], workers: int
) -> Generator[Rendered, None, None]:
    if workers <= 1 or not identities:
        yield from map(render, identities)
    else:
        yield from map_in_processes(render, identities, workers)


def _render_to_list(
    identity: int, settings: WalkerSettings, trials: tuple[tuple[Condition, int], ...], views_per_trial: int
) -> Rendered:
    return list(render_identity(identity, settings, trials, views_per_trial))


def _write_subject(folder: Path, walks: Rendered, array_format: ArrayFormat, beside: Path) -> None:
    """Write one subject to a temporary folder, then rename the folder."""
    written, replaced = beside / folder.name, beside / "replaced"
    for label, silhouettes in walks:
        view = written / condition_name(label) / view_name(label)
        view.mkdir(parents=True)
        if array_format == "npz":
            np.savez_compressed(view / f"{view.name}.npz", silhouettes)
        else:
            (view / f"{view.name}.pkl").write_bytes(pickle.dumps(silhouettes))
    if folder.exists():
        os.replace(folder, replaced)
    os.replace(written, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _read_partition(path: Path) -> Partition:
    return read_partition(path) if os.path.lexists(path) else Partition(train=(), test=())


def _extended(partition: Partition, split: Split, subjects: list[str]) -> dict[str, Any]:
    """Return a partition with more identities, in OpenGait's format, with its other keys as they are."""
    content = {key: list(names) for key, names in partition.model_dump(by_alias=True).items() if names}
    content = {"TRAIN_SET": [], "TEST_SET": [], **content}
    key = PARTITION_KEYS.get(split, "TEST_SET")
    content[key] = sorted({*content[key], *subjects})
    return {**content, **partition.other_keys}
