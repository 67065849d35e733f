"""Loading of the network and the data that a recipe names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from qgait_ptq.capture.factories import import_object, make_module
from qgait_ptq.capture.loading import load_model
from qgait_ptq.capture.trace import set_to_inference
from qgait_ptq.config.schema import DataSource, ModelSource
from qgait_ptq.errors import ConfigError, ModelError
from qgait_ptq.exporters.metadata import parse_metadata
from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.gait.adapters import ADAPTERS
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.directory import load_directory
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.gait.data.sequences import Reading
from qgait_ptq.gait.opengait.configuration import read_opengait_config
from qgait_ptq.gait.opengait.networks import PREFIX, make_opengait_network
from qgait_ptq.gait.opengait.trainer import own_preparation
from qgait_ptq.gait.protocols import get_protocol
from qgait_ptq.gait.walkers.loading import (
    CALIBRATION_WALKERS,
    TEST_WALKERS,
    finetuning_identities,
    load_walkers,
)
from qgait_ptq.gait.zoo import NETWORKS
from qgait_ptq.report.plain import plain
from qgait_ptq.runtime.embedder import Embedder
from qgait_ptq.runtime.sessions import ONNXRUNTIME, is_installed
from qgait_ptq.system.processes import processes
from qgait_ptq.system.progress import Progress
from qgait_ptq.system.threads import share_cores, usable_cores

LONGEST_KEY = 200  # letters in the report


def load_network(source: ModelSource, progress: Progress) -> tuple[nn.Module, dict[str, Any]]:
    """Load the network of a recipe with its adapter.

    Returns:
        The network, and its entries for the report: path, kind of file, hash.

    Raises:
        ModelError: the file cannot be loaded; see `load_model`.
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
            f"{source.path}: the file has sha256 {loaded.sha256[:12]}…, but the recipe was written for "
            f"{source.sha256[:12]}…; pass the original file, or name this one as MODEL"
        )
    for note in loaded.notes:
        progress.note(note)
    if loaded.left_out:
        progress.note(f"weights that the network does not have are ignored: {', '.join(loaded.left_out)}")
    network = loaded.network
    preparation = own_preparation(network)
    if preparation is not None:
        progress.note(
            f"{type(network).__name__} prepares its inputs with code of its own ({preparation}), which is "
            "not applied; store sequences as this code gives them"
        )
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
    """Return a function that makes a network of OpenGait.

    Raises:
        ConfigError: the configuration is missing, or the factory is not one of OpenGait.
    """
    name = (source.factory or PREFIX).removeprefix(PREFIX)
    if source.opengait_config is None:
        raise ConfigError(
            f"--factory {source.factory}: pass the network's YAML file of OpenGait with --opengait-config"
        )
    if source.factory is not None and not source.factory.startswith(PREFIX):
        raise ConfigError(f"--opengait-config needs --factory {PREFIX}CLASS, not --factory {source.factory}")
    config = read_opengait_config(source.opengait_config)
    for transform in config.not_applied:
        progress.note(
            f"{config.path}: {transform} is not applied; store sequences as this transform gives them"
        )
    return lambda: make_opengait_network(config, name or None)


def load_data(source: DataSource, progress: Progress, finetuning: int = 0) -> GaitData:
    """Load the data of a recipe, or the synthetic walkers if it names no data set.

    Args:
        source: what the recipe says of data.
        progress: receives notes, and the rendering of walkers as a stage.
        finetuning: number of sequences that fine-tuning can use; 0 without fine-tuning.

    Raises:
        DataError: the data cannot be used.
        ConfigError: the protocol is unknown, options of a data set are given without its root, or two
            options exclude each other.
    """
    get_protocol(source.protocol)
    if source.root is not None:
        if source.test_walkers is not None:
            raise ConfigError("--test-walkers is for the built-in walkers only; remove it, or --data")
        reading = Reading(source.cut_columns, source.longest, source.modalities, source.raw)
        data = load_directory(source.root, source.partition, source.protocol, source.metric, reading)
        progress.note(data.summary)
        if source.unlabelled is None or not finetuning:
            return data
        more = GaitDataset.from_directory(source.unlabelled, reading=reading)
        progress.note(f"unlabelled {more.summary}")
        return replace(data, unlabelled=more)
    check_walker_settings(source)
    progress.note(
        "no --data: using the built-in synthetic walkers; results on them say nothing about real recordings"
    )
    tested = source.test_walkers or TEST_WALKERS
    walkers = CALIBRATION_WALKERS + tested + finetuning_identities(finetuning)
    with progress.stage("walkers", walkers) as advance:
        return load_walkers(
            usable_cores(),
            advance,
            finetuning,
            test_walkers=tested,
            metric=source.metric,
            cache=source.cache,
            note=progress.note,
        )


def check_walker_settings(source: DataSource) -> None:
    """Check that a source without a root has no settings that the built-in walkers do not have.

    Raises:
        ConfigError: a setting differs from its default.
    """
    if source.unlabelled is not None:
        raise ConfigError("--unlabelled needs a data set; name its root folder with --data")
    if source.partition is not None:
        raise ConfigError("--partition needs a data set; name its root folder with --data")
    usual = DataSource()
    names = {"raw": "--raw", "cut_columns": "--cut-columns", "protocol": "--protocol", "longest": "longest"}
    for name, shown in names.items():
        if getattr(source, name) != getattr(usual, name):
            raise ConfigError(
                f"{shown} is not for the built-in walkers; for a data set, name its root folder with --data"
            )
    if source.modalities != usual.modalities:
        read = ", ".join(map(str, source.modalities))
        raise ConfigError(f"--modality {read} needs a data set; name its root folder with --data")


def open_embedder(path: Path) -> Embedder:
    """Open an exported file in the runtime of its target.

    Raises:
        ModelError: the toolkit did not write the file, or no runtime for it is installed.
    """
    return Embedder(path, runtime=_runtime_for(path))


def _runtime_for(path: Path) -> str:
    """Return the first installed runtime of a file's target.

    Raises:
        ModelError: as for `open_embedder`.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    properties = {entry.key: entry.value for entry in read_model(path).metadata_props}
    target = (parse_metadata(properties) or {}).get("target", {"name": "", "runtimes": [ONNXRUNTIME]})
    installed = [runtime for runtime in target["runtimes"] if is_installed(runtime)]
    if not installed:
        needed = " or ".join(target["runtimes"]) or "a runtime that this toolkit cannot run"
        raise ModelError(
            f"{path}: the file is for the target {target['name']} and needs {needed}; its accuracy at export "
            "is in the report.json beside it"
        )
    return installed[0]


def open_to_evaluate(path: Path) -> tuple[Embedder, int]:
    """Open an exported file for many sequences; return it, and the number of calls to run at once.

    Raises:
        ModelError: as for `open_embedder`.
    """
    runtime = _runtime_for(path)
    if runtime != ONNXRUNTIME:  # other runtimes use all cores in one call
        return Embedder(path, runtime=runtime), 1
    at_once, threads = share_cores(processes().here)
    return Embedder(path, threads), at_once


def data_of_file(source: DataSource, embedder: Embedder) -> DataSource:
    """Return the source of data, read as for the calibration of a file.

    The metric, the cut columns and the longest sequence can differ: the user's are taken, if there are any.
    Files of older versions do not say how long sequences were: the default is kept.

    Raises:
        ConfigError: a setting was given that would read other arrays, or read them in another way.
    """
    described = embedder.metadata.get("data", {})
    given = source.model_fields_set
    metric = source.metric if "metric" in given else described.get("metric", source.metric)
    if source.root is None:
        return source.model_copy(update={"metric": metric})
    own: dict[str, Any] = {"modality": list(embedder.modalities)}
    if embedder.layout is None:  # of several inputs, the layout says which are silhouettes
        own["raw"] = embedder.raw
    asked = {**source.model_dump(), "modality": list(source.modalities)}
    for name, value in own.items():
        if name in given and asked[name] != value:
            raise ConfigError(
                f"{embedder.path} was calibrated with {name}: {value}, not {asked[name]}; leave this setting "
                "out"
            )
    taken = {"raw": embedder.raw, "modality": embedder.modalities, "metric": metric}
    if "cut_columns" not in given:
        taken["cut_columns"] = described.get("cut_columns")
    if "longest" not in given and "longest" in described:  # null stands for all frames
        taken["longest"] = described["longest"]
    return source.model_copy(update=taken)


def absolute(path: Path | None) -> Path | None:
    """Return an absolute path, so that a recipe can be repeated from another folder."""
    return None if path is None else path.resolve()
