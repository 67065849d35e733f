"""From a recipe to the network and the data that the stages take."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from qgait_ptq.capture.loading import import_object, load_model, make_module
from qgait_ptq.capture.trace import set_to_inference
from qgait_ptq.config.schema import DataSource, ModelSource
from qgait_ptq.errors import ConfigError, ModelError
from qgait_ptq.exporters.metadata import parse_metadata
from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.gait.adapters import ADAPTERS
from qgait_ptq.gait.data.sequences import Reading
from qgait_ptq.gait.data.sources import (
    CALIBRATION_WALKERS,
    TEST_WALKERS,
    GaitData,
    load_directory,
    load_walkers,
)
from qgait_ptq.gait.opengait.configuration import (
    PREFIX,
    make_opengait_network,
    read_opengait_config,
)
from qgait_ptq.gait.protocols import get_protocol
from qgait_ptq.gait.zoo import NETWORKS
from qgait_ptq.report.plain import plain
from qgait_ptq.runtime.embedder import Embedder
from qgait_ptq.runtime.sessions import ONNXRUNTIME, is_installed
from qgait_ptq.system.progress import Progress

LONGEST_KEY = 200  # letters in the report


def load_network(source: ModelSource, progress: Progress) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a recipe, behind its adapter, and what a report says of it.

    Raises:
        ModelError: see `load_model`.
        ConfigError: the file is not the one that the recipe was written for.
    """
    factory: str | Callable[[], nn.Module] | None = source.factory
    adapter_name = source.adapter
    if source.opengait_config is not None or (source.factory or "").startswith(PREFIX):
        factory, adapter_name = _opengait_factory(source, progress), adapter_name or "opengait"
    loaded = load_model(
        source.path, factory, source.arguments, NETWORKS, source.trust_code, source.checkpoint_key
    )
    if source.sha256 and source.sha256 != loaded.sha256:
        raise ConfigError(
            f"{source.path}: another file than the one of the recipe (sha256 {loaded.sha256[:12]}…, the "
            f"recipe says {source.sha256[:12]}…)"
        )
    for note in loaded.notes:
        progress.note(note)
    if loaded.left_out:
        progress.note(f"weights that the network has no place for are left out: {', '.join(loaded.left_out)}")
    network = loaded.network
    if adapter_name is not None:
        adapter = ADAPTERS.get(adapter_name) or import_object(adapter_name, "the adapter")
        network = make_module(adapter, f"the adapter {adapter_name}", network)
        set_to_inference(network)
    key = (
        {}
        if loaded.checkpoint_key is None
        else {"checkpoint_key": plain(loaded.checkpoint_key)[:LONGEST_KEY]}
    )
    return network, {"path": str(source.path), "kind": loaded.kind, "sha256": loaded.sha256, **key}


def _opengait_factory(source: ModelSource, progress: Progress) -> Callable[[], nn.Module]:
    """Makes a network of OpenGait.

    Raises:
        ConfigError: no configuration for it, or a factory that is not OpenGait's beside one.
    """
    name = (source.factory or PREFIX).removeprefix(PREFIX)
    if source.opengait_config is None:
        raise ConfigError(
            f"--factory {source.factory} needs OpenGait's yaml of the network: --opengait-config"
        )
    if source.factory is not None and not source.factory.startswith(PREFIX):
        raise ConfigError(f"--opengait-config goes with --factory {PREFIX}CLASS, not {source.factory}")
    config = read_opengait_config(source.opengait_config)
    for transform in config.not_applied:
        progress.note(f"{transform} of {config.path} is not applied; store sequences as it gives them")
    return lambda: make_opengait_network(config, name or None)


def load_data(source: DataSource, progress: Progress) -> GaitData:
    """The data of a recipe; the synthetic walkers where it names none.

    Raises:
        DataError: the data cannot be used.
        ConfigError: no such protocol, options of a data set without a root, or two that exclude each other.
    """
    get_protocol(source.protocol)
    if source.root is not None:
        reading = Reading(source.cut_columns, source.longest, source.modalities, source.raw)
        return load_directory(source.root, source.partition, source.protocol, source.metric, reading)
    if source.partition is not None:
        raise ConfigError("--partition belongs to a data set; name its root with --data")
    if source.raw or source.cut_columns:
        raise ConfigError("--raw and --cut-columns belong to a data set; name its root with --data")
    if source.modalities != (0,):
        read = ", ".join(map(str, source.modalities))
        raise ConfigError(f"modality {read} is of a data set; name its root with --data")
    progress.note(
        "no --data: using the built-in synthetic walkers; figures on them say nothing about real recordings"
    )
    with progress.stage("walkers", CALIBRATION_WALKERS + TEST_WALKERS) as advance:
        return load_walkers(workers=usable_cores(), advance=advance)


def open_embedder(path: Path) -> Embedder:
    """A written file in the runtime that it is for.

    Raises:
        ModelError: it is no file of this toolkit, or one that no runtime at hand runs.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    properties = {entry.key: entry.value for entry in read_model(path).metadata_props}
    target = (parse_metadata(properties) or {}).get("target", {"name": "", "runtimes": [ONNXRUNTIME]})
    at_hand = [runtime for runtime in target["runtimes"] if is_installed(runtime)]
    if not at_hand:
        wanted = " or ".join(target["runtimes"]) or "a runtime that is not at hand here"
        raise ModelError(
            f"{path}: written for the target {target['name']} and needs {wanted}; what it was tested with "
            "when it was written is in the report.json beside it"
        )
    return Embedder(path, runtime=at_hand[0])


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def absolute(path: Path | None) -> Path | None:
    """A path that a recipe can be repeated with from another folder."""
    return None if path is None else path.resolve()
