"""Networks and configurations of OpenGait.

A network of OpenGait contains its trainer: its constructor needs process groups, GPUs and data. Inference
needs only ``build_network(model_cfg)``. It is called here on an object without running the constructor.
OpenGait is not a dependency: its code is searched on the user's path.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from qgait_ptq.config.recipes import read_yaml
from qgait_ptq.errors import ConfigError, ModelError, first_line
from qgait_ptq.gait.opengait.missing_imports import without_missing

PREFIX = "opengait:"  # prefix of a model factory: ``opengait:Baseline``
PROTOCOLS_BY_DATA = {
    "casia-b": "casia-b",
    "casia-b*": "casia-b",
    "oumvlp": "oumvlp",
    "gait3d": "gait3d",
    "grew": "grew",
}
METRICS = {"euc": "euclidean", "cos": "cosine"}
# They divide values by 255, which the toolkit always does. The second also cuts columns.
APPLIED_TRANSFORMS = ("BaseSilTransform", "BaseSilCuttingTransform")
NO_TRANSFORM = "NoOperation"  # for data other than silhouettes, such as a body model
FIXED_FRAMES = "fixed"  # prefix of the samplers that give each sequence the same length
MODELS = "modeling.models"  # package of OpenGait's networks


@dataclass(frozen=True)
class OpenGaitConfig:
    """Settings from a YAML file of OpenGait.

    Attributes:
        path: path of the file.
        network: class name of the network.
        model_cfg: argument of the network's ``build_network``.
        data: settings of the evaluation by their names in recipes: ``metric``, ``protocol`` (if the toolkit
            has one for the data set), ``cut_columns``, ``longest``, ``modality``, ``raw``.
        frames: frame count that the sampler gives for each sequence; None for all frames.
        not_applied: transforms of the evaluation that the toolkit does not support.
    """

    path: Path
    network: str
    model_cfg: Mapping[str, Any]
    data: Mapping[str, Any]
    frames: int | None
    not_applied: tuple[str, ...]


def read_opengait_config(path: Path) -> OpenGaitConfig:
    """Read a YAML file of OpenGait.

    Raises:
        ConfigError: the file cannot be read, a section has the wrong type, the metric is unknown, or the
            model or the modality is missing.
    """
    values = read_yaml(path, "the OpenGait configuration")
    model_cfg = values.get("model_cfg") if isinstance(values, dict) else None
    if not isinstance(model_cfg, dict) or not isinstance(model_cfg.get("model"), str):
        raise ConfigError(f"{path}: not an OpenGait configuration: model_cfg.model is missing")
    evaluator, data = (_mapping(path, values, section) for section in ("evaluator_cfg", "data_cfg"))
    sampler = _mapping(path, evaluator, "sampler")
    transforms = _transforms(path, evaluator.get("transform"))
    settings: dict[str, Any] = {"metric": _metric(path, evaluator), **_cut(transforms)}
    name = str(data.get("test_dataset_name") or data.get("dataset_name") or "").lower()
    if name in PROTOCOLS_BY_DATA:
        settings["protocol"] = PROTOCOLS_BY_DATA[name]
    if sampler.get("frames_all_limit"):
        settings["longest"] = sampler["frames_all_limit"]
    in_use = data.get("data_in_use") or [True]
    if not isinstance(in_use, list):
        raise ConfigError(f"{path}: data_cfg.data_in_use is {in_use!r}, not a list of true and false")
    used = [index for index, is_used in enumerate(in_use) if is_used]
    if not used:
        raise ConfigError(f"{path}: data_cfg.data_in_use selects no modality; set at least one to true")
    settings["modality"] = used[0] if len(used) == 1 else used
    if transforms and all(name == NO_TRANSFORM for name, _ in transforms):
        settings["raw"] = True
    fixed = str(sampler.get("sample_type", "")).startswith(FIXED_FRAMES)
    return OpenGaitConfig(
        path,
        model_cfg["model"],
        model_cfg,
        settings,
        sampler.get("frames_num_fixed") if fixed else None,
        tuple(name for name, _ in transforms if name not in (*APPLIED_TRANSFORMS, NO_TRANSFORM)),
    )


def _mapping(path: Path, values: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Return a section, or an empty mapping if it is missing."""
    content = values.get(section) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {section} is {content!r}, not a mapping")
    return content


def _metric(path: Path, evaluator: Mapping[str, Any]) -> str:
    metric = str(evaluator.get("metric", "euc"))
    if metric not in METRICS:
        raise ConfigError(
            f"{path}: evaluator_cfg.metric is {metric!r}; supported values are {', '.join(METRICS)}"
        )
    return METRICS[metric]


def _transforms(path: Path, configured: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return names and settings of transforms, which are one mapping or a list."""
    listed = configured if isinstance(configured, list) else [configured] if configured else []
    if not all(isinstance(transform, dict) for transform in listed):
        raise ConfigError(f"{path}: evaluator_cfg.transform is {configured!r}, not a list of mappings")
    return [(str(transform.get("type")), transform) for transform in listed]


def _cut(transforms: list[tuple[str, Mapping[str, Any]]]) -> dict[str, int]:
    """Return the columns that the first transform of silhouettes cuts; empty for the toolkit's default."""
    of_silhouettes = [transform for transform in transforms if transform[0] in APPLIED_TRANSFORMS]
    name, settings = of_silhouettes[0] if of_silhouettes else ("", {})
    if name == "BaseSilTransform":
        return {"cut_columns": 0}
    return {"cut_columns": settings["cutting"]} if settings.get("cutting") is not None else {}


def make_opengait_network(config: OpenGaitConfig, name: str | None = None) -> nn.Module:
    """Make a network of OpenGait without its trainer.

    Args:
        config: configuration of the network.
        name: class name; None for the class in the configuration.

    Raises:
        ModelError: OpenGait's code is not found, has no such class, or cannot build the network.
    """
    name = name or config.network
    folder = find_opengait()
    with _importable(folder):
        network_class = _find_class(folder, name)
        try:
            network: nn.Module = network_class.__new__(network_class)
            nn.Module.__init__(network)
            network.build_network(dict(config.model_cfg))  # type: ignore[operator]
        except Exception as error:
            raise ModelError(
                f"OpenGait's {name} cannot be built with the model_cfg of {config.path} "
                f"({type(error).__name__}: {first_line(error)}); check that the file belongs to this network"
            ) from error
    return network


def find_opengait() -> Path:
    """Return the folder of OpenGait's packages: ``opengait/`` of its repository, or a folder on the path.

    Raises:
        ModelError: OpenGait is not on the path.
    """
    for entry in (Path.cwd(), *map(Path, filter(None, sys.path))):
        for folder in (entry, entry / "opengait"):
            if (folder / "modeling" / "base_model.py").is_file():
                return folder.resolve()
    raise ModelError(
        "OpenGait's code was not found; run from its repository, or put that folder on the path: "
        "PYTHONPATH=/where/OpenGait qgait-ptq …"
    )


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Make OpenGait's packages importable, and its package of networks without importing all networks.

    That package imports every network with all dependencies. They include the trainer, whose requirements
    are often not installed.
    """
    package = ModuleType(MODELS)
    package.__path__ = [str(folder / "modeling" / "models")]
    sys.path.insert(0, str(folder))
    try:
        if MODELS not in sys.modules:
            importlib.import_module("modeling")
            sys.modules[MODELS] = package
        with without_missing(folder):
            yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"OpenGait at {folder} cannot be imported ({type(error).__name__}: {first_line(error)}); install "
            "its requirements"
        ) from error
    finally:
        sys.path.remove(str(folder))


def _find_class(folder: Path, name: str) -> type[nn.Module]:
    """Import the file that defines a network, and return its class."""
    known: dict[str, str] = {}
    for file in sorted((folder / "modeling" / "models").glob("*.py")):
        for class_name in re.findall(r"^class (\w+)\(", file.read_text(), re.MULTILINE):
            known[class_name] = file.stem
    if name not in known:
        raise ModelError(
            f"OpenGait at {folder} has no network {name!r}; choose one of {', '.join(sorted(known))}"
        )
    network_class: type[nn.Module] = getattr(importlib.import_module(f"{MODELS}.{known[name]}"), name)
    return network_class
