"""Loading a network from any kind of model file, without running code from the file.

Weights (a safetensors file, a state_dict, or a training checkpoint) need a factory that makes the network,
unless the file names a network of the built-in zoo. A `torch.export` program and a pickled module contain
code: they are loaded only if the user trusts the file.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import stat
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from qgait_ptq.capture.exported_program import load_exported_program
from qgait_ptq.capture.trace import set_to_inference
from qgait_ptq.capture.weights import (
    check_fit,
    check_global_names,
    find_weights,
    is_safetensors,
    read_safetensors,
)
from qgait_ptq.errors import ModelError, QgaitError, first_line

ARCHITECTURE_KEY = "architecture"  # {"name": ..., "arguments": {...}} beside the weights
LARGEST_FILE = 16 * 2**30  # bytes of a model
LARGEST_ARGUMENT, LONGEST_LIST = 4096, 64  # limits of arguments that a file gives
Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class LoadedModel:
    """A network from a file.

    Attributes:
        network: network in eval mode on the CPU.
        kind: kind of file, for people.
        sha256: SHA-256 of the file.
        left_out: top-level modules in the file that the network does not have, such as a classifier for
            training only.
    """

    network: nn.Module
    kind: str
    sha256: str = ""
    left_out: tuple[str, ...] = ()


def load_model(
    path: Path,
    factory: str | Factory | None = None,
    arguments: Mapping[str, Any] | None = None,
    zoo: Mapping[str, Factory] | None = None,
    trust_code: bool = False,
) -> LoadedModel:
    """Load a network.

    Args:
        path: path of the file.
        factory: function that makes the network for weights: a callable, or ``module:callable``.
        arguments: keyword arguments of the factory.
        zoo: networks that a file can name, by name.
        trust_code: whether an exported program or a pickled module can be loaded, which runs code from the
            file.

    Raises:
        ModelError: the file cannot be loaded; the text names the kind of file and the problem.
    """
    data = _read(path)
    loaded = _load(path, data, factory, arguments or {}, zoo or {}, trust_code)
    _check_finite(loaded.network, path)
    set_to_inference(loaded.network)
    return replace(loaded, sha256=hashlib.sha256(data).hexdigest())


def import_object(name: str, what: str) -> Any:
    """Import ``module:name``. The current folder is searched too.

    Raises:
        ModelError: the module or the name does not exist, or the import fails.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"{what} {name!r} does not have the form module:name")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        imported: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            imported = getattr(imported, part)
    except Exception as error:
        raise ModelError(
            f"{what} {name!r} cannot be imported ({type(error).__name__}: {first_line(error)})"
        ) from error
    return imported


def _read(path: Path) -> bytes:
    """Return the content of a regular file. A pipe or a device could be endless."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: the model cannot be read (not a regular file)")
        if status.st_size > LARGEST_FILE:
            raise ModelError(
                f"{path}: {status.st_size / 2**30:.1f} GiB; the limit is {LARGEST_FILE >> 30} GiB"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: the model cannot be read ({error.strerror or error})") from None


def _load(
    path: Path,
    data: bytes,
    factory: str | Factory | None,
    arguments: Mapping[str, Any],
    zoo: Mapping[str, Factory],
    trust_code: bool,
) -> LoadedModel:
    if is_safetensors(path, data):
        return _from_content(path, read_safetensors(path, data), len(data), factory, arguments, zoo)
    members = _members(path, data)
    names = [member.filename for member in members]
    if any(name.endswith("archive_format") for name in names) or any("/models/" in name for name in names):
        return LoadedModel(load_exported_program(path, data, trust_code), "exported program")
    if any(name.endswith("/constants.pkl") for name in names):
        raise ModelError(f"{path}: the file looks like TorchScript; save the network's state_dict instead")
    if names and not any(name.endswith("data.pkl") for name in names):
        raise ModelError(f"{path}: a zip archive without weights or an exported program of torch")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        # The size of the file does not limit their size.
        raise ModelError(f"{path}: an archive with compressed members, which torch does not write")
    check_global_names(path, data, [member for member in members if member.filename.endswith("data.pkl")])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an error follows
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the unpickler raise any error
        if names:
            return LoadedModel(_from_pickled_module(path, data, trust_code, error), "pickled module")
        raise ModelError(
            f"{path}: not a model; expected weights (safetensors, or torch.save of a state_dict or a "
            "checkpoint) or an exported program (torch.export.save)"
        ) from None
    return _from_content(path, content, len(data), factory, arguments, zoo)


def _members(path: Path, data: bytes) -> list[zipfile.ZipInfo]:
    """Return the members of a zip archive; none for other files, such as those of torch before 1.6.

    Raises:
        ModelError: the archive is damaged.
    """
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return []
        return zipfile.ZipFile(io.BytesIO(data)).infolist()
    except Exception as error:  # damaged directories raise many kinds
        raise ModelError(f"{path}: a damaged archive ({first_line(error)})") from None


def _from_pickled_module(path: Path, data: bytes, trust_code: bool, refusal: Exception) -> nn.Module:
    if not trust_code:
        raise ModelError(
            f"{path}: the file has a pickled object, which runs code when it is loaded. Save the state_dict "
            "and name the network with --factory, or, if you trust the file, add --trust-code"
        ) from refusal
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(
            f"{path}: the file looks like a pickled module, but cannot be unpickled "
            f"({type(error).__name__}: {first_line(error)}); check that its package is installed"
        ) from error
    if not isinstance(content, nn.Module):
        raise ModelError(f"{path}: the file has a pickled {type(content).__name__}, not a module")
    while isinstance(content, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        content = content.module
    return cast(nn.Module, content)


def _from_content(
    path: Path,
    content: Any,
    file_bytes: int,
    factory: str | Factory | None,
    arguments: Mapping[str, Any],
    zoo: Mapping[str, Factory],
) -> LoadedModel:
    weights, kind = find_weights(path, content, file_bytes)
    if factory is not None:
        make: Factory = import_object(factory, "the model factory") if isinstance(factory, str) else factory
    elif isinstance(content, dict) and ARCHITECTURE_KEY in content:
        make, arguments = _named_architecture(path, content[ARCHITECTURE_KEY], zoo)
        kind = "checkpoint that names its network"
        # The arguments come from the file. The check against its weights runs before memory is allocated.
        with torch.device("meta"):
            check_fit(path, make_module(make, "the network", **arguments), weights)
    else:
        raise ModelError(
            f"{path}: the file looks like a {kind}; name its network with --factory module:factory"
        )
    network = make_module(make, factory if isinstance(factory, str) else "the network", **arguments)
    left_out = check_fit(path, network, weights)
    network.load_state_dict(dict(weights), strict=False)
    return LoadedModel(network, kind, left_out=left_out)


def _named_architecture(
    path: Path,
    architecture: Any,
    zoo: Mapping[str, Factory],
) -> tuple[Factory, Mapping[str, Any]]:
    """Return the built-in network that a file names, and its arguments.

    Raises:
        ModelError: the network does not exist, or the arguments are not small numbers and texts.
    """
    name = architecture.get("name") if isinstance(architecture, dict) else architecture
    arguments = architecture.get("arguments", {}) if isinstance(architecture, dict) else {}
    if not isinstance(name, str) or name not in zoo:
        raise ModelError(f"{path}: unknown network {name!r}; built-in networks are {', '.join(zoo)}")
    if not isinstance(arguments, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in arguments.items()
    ):
        raise ModelError(
            f"{path}: the arguments of its network must be names with texts, numbers up to "
            f"{LARGEST_ARGUMENT}, or short lists of these"
        )
    return zoo[name], arguments


def _is_plain(value: Any) -> bool:
    """Return whether an argument is a small number, a short text, or a short list of these."""
    if isinstance(value, list | tuple):
        return len(value) <= LONGEST_LIST and all(_is_plain(one) for one in value)
    if isinstance(value, str):
        return len(value) <= LARGEST_ARGUMENT
    return isinstance(value, int | float) and abs(value) <= LARGEST_ARGUMENT


def make_module(factory: Callable[..., Any], name: str, *arguments: Any, **keywords: Any) -> nn.Module:
    """Call a user's factory or adapter.

    Raises:
        ModelError: the call fails, or its result is not a module.
    """
    try:
        network = factory(*arguments, **keywords)
    except QgaitError:
        raise
    except Exception as error:
        settings = f" with {keywords}" if keywords else ""
        raise ModelError(
            f"{name} cannot make a network{settings} ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} returns a {type(network).__name__}, not a torch.nn.Module")
    return network


def _check_finite(network: nn.Module, path: Path) -> None:
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{path}: the weight {name} has NaN or infinite values")
