"""Networks of OpenGait, made by OpenGait's own code.

OpenGait is not a dependency: its code is searched on the user's path.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from qgait_ptq.config.recipes import read_yaml
from qgait_ptq.errors import ModelError, first_line
from qgait_ptq.gait.opengait.configuration import OpenGaitConfig
from qgait_ptq.gait.opengait.gpu_code import GpuCodeOnCpu
from qgait_ptq.gait.opengait.missing_imports import without_missing
from qgait_ptq.gait.opengait.trainer import make_without_trainer
from qgait_ptq.graph.code_places import find_place

PREFIX = "opengait:"  # prefix of a model factory: ``opengait:Baseline``
MODELS = "modeling.models"  # package of OpenGait's networks
DEFAULTS = Path("configs", "default.yaml")  # settings that OpenGait adds to every configuration


def make_opengait_network(config: OpenGaitConfig, name: str | None = None) -> nn.Module:
    """Make a network of OpenGait without its trainer, on the CPU.

    Args:
        config: configuration of the network.
        name: class name; None for the class in the configuration.

    Raises:
        ModelError: OpenGait's code is not found, has no such class, or cannot build the network.
    """
    name = name or config.network
    folder = find_opengait()
    with GpuCodeOnCpu(), _importable(folder):
        network_class = _find_class(folder, name)
        try:
            return make_without_trainer(network_class, _with_defaults(config.sections, folder))
        except Exception as error:
            remedy = (
                "install that package"
                if isinstance(error, ImportError)
                else "check that the file belongs to this network"
            )
            raise ModelError(
                f"OpenGait's {name} cannot be built with the model_cfg of {config.path} "
                f"({_describe(error, folder)}); {remedy}"
            ) from error


def _describe(error: BaseException, folder: Path) -> str:
    """Return an error in one line, with the place in OpenGait's code."""
    place = find_place(error, folder)
    where = f" at {place.file}:{place.line}, `{place.code}`" if place else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def _with_defaults(sections: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the sections of a configuration with the settings that OpenGait adds."""
    path = folder.parent / DEFAULTS
    defaults = read_yaml(path, "OpenGait's defaults", as_opengait=True) if path.is_file() else {}
    return _merge(sections, defaults if isinstance(defaults, dict) else {})


def _merge(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for name, value in settings.items():
        default = merged.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            merged[name] = _merge(value, default)
        else:
            merged[name] = value
    return merged


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
            f"OpenGait at {folder} cannot be imported ({_describe(error, folder)}); install its "
            "requirements. If that line imports an installed package, the package does not work: reinstall it"
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
