"""Loading a network from a file, whatever kind of file it is, without running what the file says.

Four kinds: a `torch.export` program; weights (a state_dict, or a training checkpoint around one) with a
factory that makes the network; weights that name a network of the built-in zoo themselves; and a pickled
module, which is a program and is run only when the user trusts it.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from qgait_ptq.errors import ModelError, QgaitError, first_line
from qgait_ptq.graph.exported_program import load_exported_program
from qgait_ptq.graph.trace import set_to_inference

WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "network")  # of training checkpoints
ARCHITECTURE_KEY = "architecture"  # {"name": ..., "arguments": {...}} beside the weights
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
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
    trust_pickle: bool = False,
) -> LoadedModel:
    """Load a network.

    Args:
        path: the file.
        factory: makes the network, for weights: a callable, or ``module:callable``.
        arguments: keyword arguments of the factory.
        zoo: networks that a file may name, by name.
        trust_pickle: whether a pickled module may be loaded, which runs code from the file.

    Raises:
        ModelError: says what the file looked like, and what is missing or wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: the model cannot be read ({error.strerror or error})") from None
    loaded = _load(path, data, factory, arguments or {}, zoo or {}, trust_pickle)
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


def _load(
    path: Path,
    data: bytes,
    factory: str | Factory | None,
    arguments: Mapping[str, Any],
    zoo: Mapping[str, Factory],
    trust_pickle: bool,
) -> LoadedModel:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return _from_legacy_or_unknown(path, data, factory, arguments, zoo)
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    if any(name.endswith("archive_format") for name in names) or any("/models/" in name for name in names):
        return LoadedModel(load_exported_program(path, data, trust_pickle), "exported program")
    if any(name.endswith("/constants.pkl") for name in names):
        raise ModelError(f"{path}: looks like TorchScript; save the network with torch.export.save instead")
    if not any(name.endswith("data.pkl") for name in names):
        raise ModelError(f"{path}: a zip archive, but neither weights nor an exported program of torch")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        return LoadedModel(_from_pickled_module(path, data, trust_pickle, error), "pickled module")
    return _from_content(path, content, factory, arguments, zoo)


def _from_legacy_or_unknown(
    path: Path,
    data: bytes,
    factory: str | Factory | None,
    arguments: Mapping[str, Any],
    zoo: Mapping[str, Factory],
) -> LoadedModel:
    """Files of torch before 1.6 are no archives; text files and others are refused."""
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        raise ModelError(
            f"{path}: not a model; expected weights (torch.save of a state_dict or checkpoint) or an "
            "exported program (torch.export.save)"
        ) from None
    return _from_content(path, content, factory, arguments, zoo)


def _from_pickled_module(path: Path, data: bytes, trust_pickle: bool, refusal: Exception) -> nn.Module:
    if not trust_pickle:
        raise ModelError(
            f"{path}: holds a pickled object, not only weights; a pickle runs code when it is loaded. Save "
            "the state_dict and name the network with --model, or, if you trust the file, use --trust-pickle"
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
    factory: str | Factory | None,
    arguments: Mapping[str, Any],
    zoo: Mapping[str, Factory],
) -> LoadedModel:
    weights, kind = _find_weights(path, content)
    if factory is not None:
        make: Factory = import_object(factory, "the model factory") if isinstance(factory, str) else factory
    elif isinstance(content, dict) and ARCHITECTURE_KEY in content:
        make, arguments = _named_architecture(path, content[ARCHITECTURE_KEY], zoo)
        kind = "checkpoint that names its network"
    else:
        raise ModelError(
            f"{path}: looks like a {kind}; name the network that it belongs to with --model module:factory"
        )
    network = make_module(make, factory if isinstance(factory, str) else "the network", **arguments)
    return LoadedModel(network, kind, left_out=_load_weights(path, network, weights))


def _find_weights(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    if isinstance(content, dict):
        for key in WEIGHT_KEYS:
            if isinstance(content.get(key), dict) and _is_state_dict(content[key]):
                return _unwrapped(content[key]), "training checkpoint"
        if _is_state_dict(content):
            return _unwrapped(content), "state_dict"
    described = f"a {type(content).__name__}"
    if isinstance(content, dict):
        described = f"a dictionary with the keys {', '.join(map(str, list(content)[:5]))}"
    raise ModelError(f"{path}: holds {described}, in which no weights are found")


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, in full precision."""
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return {name: v.float() if v.is_floating_point() else v for name, v in weights.items()}


def _named_architecture(
    path: Path,
    architecture: Any,
    zoo: Mapping[str, Factory],
) -> tuple[Factory, Mapping[str, Any]]:
    name = architecture.get("name") if isinstance(architecture, dict) else architecture
    if not isinstance(name, str) or name not in zoo:
        raise ModelError(f"{path}: names the network {name!r}; built in are {', '.join(zoo)}")
    return zoo[name], architecture.get("arguments", {}) if isinstance(architecture, dict) else {}


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


def _load_weights(path: Path, network: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load weights; gives the top-level modules that the network does not have and needs nothing of."""
    expected = network.state_dict()
    own = {name.partition(".")[0] for name in expected} | {name for name, _ in network.named_children()}
    others = dict.fromkeys(name.partition(".")[0] for name in weights if name.partition(".")[0] not in own)
    weights = {name: value for name, value in weights.items() if name.partition(".")[0] in own}
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in expected]
    wrong = [
        f"{name} {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (wrong, "of another shape"))
        if names
    ]
    if problems:
        raise ModelError(
            f"{path}: its weights do not fit the network: {'; '.join(problems)}; is it the right network, "
            "with the right arguments?"
        )
    network.load_state_dict(dict(weights), strict=False)
    return tuple(others)


def _check_finite(network: nn.Module, path: Path) -> None:
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{path}: the weight {name} holds NaN or infinite values")
