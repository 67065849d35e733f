"""From a recipe to the network and the data that the stages take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from qgait_ptq.config import DataSource, ModelSource
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.adapters import ADAPTERS
from qgait_ptq.gait.protocols import get_protocol
from qgait_ptq.gait.sources import (
    CALIBRATION_WALKERS,
    TEST_WALKERS,
    GaitData,
    load_directory,
    load_walkers,
)
from qgait_ptq.gait.zoo import NETWORKS
from qgait_ptq.graph.loading import import_object, load_model, make_module
from qgait_ptq.graph.trace import set_to_inference
from qgait_ptq.progress import Progress


def load_network(source: ModelSource, progress: Progress) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a recipe, behind its adapter, and what a report says of it.

    Raises:
        ModelError: see `load_model`.
        ConfigError: the file is not the one that the recipe was written for.
    """
    loaded = load_model(source.path, source.factory, source.arguments, NETWORKS, source.trust_pickle)
    if source.sha256 and source.sha256 != loaded.sha256:
        raise ConfigError(
            f"{source.path}: another file than the one of the recipe (sha256 {loaded.sha256[:12]}…, the "
            f"recipe says {source.sha256[:12]}…)"
        )
    if loaded.left_out:
        progress.note(f"weights that the network has no place for are left out: {', '.join(loaded.left_out)}")
    network = loaded.network
    if source.adapter is not None:
        adapter = ADAPTERS.get(source.adapter) or import_object(source.adapter, "the adapter")
        network = make_module(adapter, f"the adapter {source.adapter}", network)
        set_to_inference(network)
    return network, {"path": str(source.path), "kind": loaded.kind, "sha256": loaded.sha256}


def load_data(source: DataSource, progress: Progress) -> GaitData:
    """The data of a recipe; the synthetic walkers where it names none.

    Raises:
        DataError: the data cannot be used.
        ConfigError: no such protocol, or a partition without a root.
    """
    get_protocol(source.protocol)
    if source.root is not None:
        return load_directory(source.root, source.partition, source.protocol, source.metric)
    if source.partition is not None:
        raise ConfigError("--partition belongs to a data set; name its root with --data")
    progress.note(
        "no --data: using the built-in synthetic walkers; figures on them say nothing about real recordings"
    )
    with progress.stage("walkers", CALIBRATION_WALKERS + TEST_WALKERS) as advance:
        return load_walkers(workers=usable_cores(), advance=advance)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def absolute(path: Path | None) -> Path | None:
    """A path that a recipe can be repeated with from another folder."""
    return None if path is None else path.resolve()
