"""OpenGait's networks and configurations, as its users have them.

Its networks are classes around a trainer: the constructor wants process groups, GPUs and data. What inference
needs is only ``build_network(model_cfg)``, which is called here on an object that skipped the constructor.
OpenGait itself is not a dependency: its code is found where the user has it.
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

PREFIX = "opengait:"  # of a model factory: ``opengait:Baseline``
PROTOCOLS_BY_DATA = {
    "casia-b": "casia-b",
    "casia-b*": "casia-b",
    "oumvlp": "oumvlp",
    "gait3d": "gait3d",
    "grew": "grew",
}
METRICS = {"euc": "euclidean", "cos": "cosine"}
# Values divided by 255, which is done to all data; the second cuts columns, too.
APPLIED_TRANSFORMS = ("BaseSilTransform", "BaseSilCuttingTransform")
NO_TRANSFORM = "NoOperation"  # of what is no silhouettes, such as a body model
FIXED_FRAMES = "fixed"  # how the names of samplers begin that give each sequence the same length
MODELS = "modeling.models"  # the package of its networks


@dataclass(frozen=True)
class OpenGaitConfig:
    """What the toolkit takes from an OpenGait yaml.

    Attributes:
        path: of the file.
        network: class name.
        model_cfg: what its ``build_network`` takes.
        data: of the evaluation, by the names that recipes have: ``metric``, ``protocol`` (where the toolkit
            has one for the data set), ``cut_columns``, ``longest``, ``modality``, ``raw``.
        frames: how many the sampler gives of every sequence; None where it gives all.
        not_applied: transforms of the evaluation that the toolkit does not know.
    """

    path: Path
    network: str
    model_cfg: Mapping[str, Any]
    data: Mapping[str, Any]
    frames: int | None
    not_applied: tuple[str, ...]


def read_opengait_config(path: Path) -> OpenGaitConfig:
    """Read an OpenGait yaml.

    Raises:
        ConfigError: it cannot be read, names no model, a metric that is not known, or no modality, or a
            section is not of the kind that OpenGait reads.
    """
    values = read_yaml(path, "the OpenGait configuration")
    model_cfg = values.get("model_cfg") if isinstance(values, dict) else None
    if not isinstance(model_cfg, dict) or not isinstance(model_cfg.get("model"), str):
        raise ConfigError(f"{path}: no OpenGait configuration: it has no model_cfg that names a model")
    evaluator, data = (_mapping(path, values, section) for section in ("evaluator_cfg", "data_cfg"))
    sampler = _mapping(path, evaluator, "sampler")
    transforms = _transforms(path, evaluator.get("transform"))
    found: dict[str, Any] = {"metric": _metric(path, evaluator), **_cut(transforms)}
    name = str(data.get("test_dataset_name") or data.get("dataset_name") or "").lower()
    if name in PROTOCOLS_BY_DATA:
        found["protocol"] = PROTOCOLS_BY_DATA[name]
    if sampler.get("frames_all_limit"):
        found["longest"] = sampler["frames_all_limit"]
    in_use = data.get("data_in_use") or [True]
    if not isinstance(in_use, list):
        raise ConfigError(f"{path}: data_cfg.data_in_use is {in_use!r}, not a list of true and false")
    used = [index for index, is_used in enumerate(in_use) if is_used]
    if not used:
        raise ConfigError(f"{path}: data_cfg.data_in_use takes no modality")
    found["modality"] = used[0] if len(used) == 1 else used
    if transforms and all(name == NO_TRANSFORM for name, _ in transforms):
        found["raw"] = True
    fixed = str(sampler.get("sample_type", "")).startswith(FIXED_FRAMES)
    return OpenGaitConfig(
        path,
        model_cfg["model"],
        model_cfg,
        found,
        sampler.get("frames_num_fixed") if fixed else None,
        tuple(name for name, _ in transforms if name not in (*APPLIED_TRANSFORMS, NO_TRANSFORM)),
    )


def _mapping(path: Path, values: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """A section; nothing where it is left out."""
    found = values.get(section) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: {section} is {found!r}, not a mapping")
    return found


def _metric(path: Path, evaluator: Mapping[str, Any]) -> str:
    metric = str(evaluator.get("metric", "euc"))
    if metric not in METRICS:
        raise ConfigError(f"{path}: evaluator_cfg.metric is {metric!r}; known are {', '.join(METRICS)}")
    return METRICS[metric]


def _transforms(path: Path, configured: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and settings of transforms, which may be one or a list."""
    listed = configured if isinstance(configured, list) else [configured] if configured else []
    if not all(isinstance(transform, dict) for transform in listed):
        raise ConfigError(f"{path}: evaluator_cfg.transform is {configured!r}, not a list of mappings")
    return [(str(transform.get("type")), transform) for transform in listed]


def _cut(transforms: list[tuple[str, Mapping[str, Any]]]) -> dict[str, int]:
    """How many columns the first transform of silhouettes cuts, where that is not the toolkit's own rule."""
    of_silhouettes = [transform for transform in transforms if transform[0] in APPLIED_TRANSFORMS]
    name, settings = of_silhouettes[0] if of_silhouettes else ("", {})
    if name == "BaseSilTransform":
        return {"cut_columns": 0}
    return {"cut_columns": settings["cutting"]} if settings.get("cutting") is not None else {}


def make_opengait_network(config: OpenGaitConfig, name: str | None = None) -> nn.Module:
    """Make a network of OpenGait without its trainer.

    Args:
        config: of the network.
        name: class name; None takes the one of the configuration.

    Raises:
        ModelError: OpenGait's code is not found, has no such class, or the class cannot be made.
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
                f"({type(error).__name__}: {first_line(error)}); does the file belong to this network?"
            ) from error
    return network


def find_opengait() -> Path:
    """The folder that holds OpenGait's packages: ``opengait/`` of its repository, or what is on the path.

    Raises:
        ModelError: it is nowhere on the path.
    """
    for entry in (Path.cwd(), *map(Path, filter(None, sys.path))):
        for folder in (entry, entry / "opengait"):
            if (folder / "modeling" / "base_model.py").is_file():
                return folder.resolve()
    raise ModelError(
        "OpenGait's code is not found; run from its repository, or put that folder on the path: "
        "PYTHONPATH=/where/OpenGait qgait-ptq …"
    )


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let OpenGait's packages be imported, and its package of networks without importing all of them.

    That package imports every network, with everything that any of them depends on; and what any of them
    imports leads to the trainer, whose requirements need not be installed.
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
            f"OpenGait at {folder} cannot be imported ({type(error).__name__}: {first_line(error)}); are its "
            "requirements installed?"
        ) from error
    finally:
        sys.path.remove(str(folder))


def _find_class(folder: Path, name: str) -> type[nn.Module]:
    """Import the one file that defines a network."""
    known: dict[str, str] = {}
    for file in sorted((folder / "modeling" / "models").glob("*.py")):
        for found in re.findall(r"^class (\w+)\(", file.read_text(), re.MULTILINE):
            known[found] = file.stem
    if name not in known:
        raise ModelError(f"OpenGait at {folder} has no network {name!r}; it has {', '.join(sorted(known))}")
    network_class: type[nn.Module] = getattr(importlib.import_module(f"{MODELS}.{known[name]}"), name)
    return network_class
