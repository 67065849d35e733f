"""Loading a network from a file, whatever kind of file it is, without running what the file says.

Weights (a safetensors file, a state_dict, or a training checkpoint around one) need a factory that makes the
network, or name a network of the built-in zoo themselves. A `torch.export` program and a pickled module are
programs: they are loaded only where the user trusts the file.
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
LARGEST_ARGUMENT, LONGEST_LIST = 4096, 64  # of a network that a file names
Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class LoadedModel:
    """A network from a file.

    Attributes:
        network: in eval mode, on the CPU.
        kind: what the file was, for people.
        sha256: of the file.
        left_out: modules that the file has weights of and the network has not, such as a classifier that was
            needed for training only.
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
        path: the file.
        factory: makes the network, for weights: a callable, or ``module:callable``.
        arguments: keyword arguments of the factory.
        zoo: networks that a file may name, by name.
        trust_code: whether an exported program or a pickled module may be loaded, which runs code from the
            file.

    Raises:
        ModelError: says what the file looked like, and what is missing or wrong.
    """
    data = _read(path)
    loaded = _load(path, data, factory, arguments or {}, zoo or {}, trust_code)
    _check_finite(loaded.network, path)
    set_to_inference(loaded.network)
    return replace(loaded, sha256=hashlib.sha256(data).hexdigest())


def import_object(name: str, what: str) -> Any:
    """Import ``module:name``; the current folder is searched, too.

    Raises:
        ModelError: no such module or name, or its import fails.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"{what} {name!r} is not of the form module:name")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ModelError(
            f"{what} {name!r} cannot be imported ({type(error).__name__}: {first_line(error)})"
        ) from error
    return found


def _read(path: Path) -> bytes:
    """The content of a regular file; a pipe or a device could be without end."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{path}: the model cannot be read (not a regular file)")
        if found.st_size > LARGEST_FILE:
            raise ModelError(
                f"{path}: {found.st_size / 2**30:.1f} GiB; the limit is {LARGEST_FILE >> 30} GiB"
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
        raise ModelError(f"{path}: looks like TorchScript; save the network's state_dict instead")
    if names and not any(name.endswith("data.pkl") for name in names):
        raise ModelError(f"{path}: a zip archive, but neither weights nor an exported program of torch")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        # Their size would not be bounded by that of the file.
        raise ModelError(f"{path}: an archive with compressed members; torch writes none")
    check_global_names(path, data, [member for member in members if member.filename.endswith("data.pkl")])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it then refuses
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the unpickler raise anything
        if names:
            return LoadedModel(_from_pickled_module(path, data, trust_code, error), "pickled module")
        raise ModelError(
            f"{path}: not a model; expected weights (safetensors, or torch.save of a state_dict or a "
            "checkpoint) or an exported program (torch.export.save)"
        ) from None
    return _from_content(path, content, len(data), factory, arguments, zoo)


def _members(path: Path, data: bytes) -> list[zipfile.ZipInfo]:
    """Members of a zip archive; none where a file is no archive, as those of torch before 1.6.

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
            f"{path}: holds a pickled object, not only weights; a pickle runs code when it is loaded. Save "
            "the state_dict and name the network with --factory, or, if you trust the file, use --trust-code"
        ) from refusal
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(
            f"{path}: looks like a pickled module, but cannot be unpickled "
            f"({type(error).__name__}: {first_line(error)}); is its package installed?"
        ) from error
    if not isinstance(content, nn.Module):
        raise ModelError(f"{path}: a pickled {type(content).__name__}, not a module")
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
        # The arguments are the file's: nothing is allocated before they are seen to fit its weights.
        with torch.device("meta"):
            check_fit(path, make_module(make, "the network", **arguments), weights)
    else:
        raise ModelError(
            f"{path}: looks like a {kind}; name the network that it belongs to with --factory module:factory"
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
    """The built-in network that a file names, and its arguments.

    Raises:
        ModelError: there is no such network, or the arguments are no small numbers and texts.
    """
    name = architecture.get("name") if isinstance(architecture, dict) else architecture
    arguments = architecture.get("arguments", {}) if isinstance(architecture, dict) else {}
    if not isinstance(name, str) or name not in zoo:
        raise ModelError(f"{path}: names the network {name!r}; built in are {', '.join(zoo)}")
    if not isinstance(arguments, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in arguments.items()
    ):
        raise ModelError(
            f"{path}: the arguments of its network are not names with texts, numbers up to "
            f"{LARGEST_ARGUMENT} and short lists of them"
        )
    return zoo[name], arguments


def _is_plain(value: Any) -> bool:
    """Whether an argument is a small number, a text, or a short list of these."""
    if isinstance(value, list | tuple):
        return len(value) <= LONGEST_LIST and all(_is_plain(one) for one in value)
    if isinstance(value, str):
        return len(value) <= LARGEST_ARGUMENT
    return isinstance(value, int | float) and abs(value) <= LARGEST_ARGUMENT


def make_module(factory: Callable[..., Any], name: str, *arguments: Any, **keywords: Any) -> nn.Module:
    """Call a user's factory or adapter.

    Raises:
        ModelError: it fails, or gives no module.
    """
    try:
        network = factory(*arguments, **keywords)
    except QgaitError:
        raise
    except Exception as error:
        given = f" with {keywords}" if keywords else ""
        raise ModelError(
            f"{name} cannot make a network{given} ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} gives a {type(network).__name__}, not a torch.nn.Module")
    return network


def _check_finite(network: nn.Module, path: Path) -> None:
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{path}: the weight {name} holds NaN or infinite values")
