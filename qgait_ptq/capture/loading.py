"""Loading a network from any kind of model file, without running code from the file.

Weights (a safetensors file, a state_dict, or a training checkpoint) need a factory that makes the network,
unless the file names a network of the built-in zoo. A `torch.export` program and a pickled module contain
code: they are loaded only if the user trusts the file.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qgait_ptq.capture.checkpoint import choose_weights, preferred_module
from qgait_ptq.capture.checkpoint_contents import children, key_text, listed, search
from qgait_ptq.capture.exported_program import load_exported_program
from qgait_ptq.capture.factories import Factory, import_object, make_module, named_architecture
from qgait_ptq.capture.model_file import archive_members, read_file
from qgait_ptq.capture.own_copy import check_usable, without_wrapper
from qgait_ptq.capture.pickles import LEGACY_START, is_of_tensors, survey_pickles
from qgait_ptq.capture.stand_ins import StandIn, stand_ins
from qgait_ptq.capture.trace import set_to_inference
from qgait_ptq.capture.weight_names import names_of
from qgait_ptq.capture.weights import check_tensors, fill_network, is_safetensors, read_safetensors
from qgait_ptq.errors import ModelError, first_line

ARCHITECTURE_KEY = "architecture"  # {"name": ..., "arguments": {...}} beside the weights


@dataclass(frozen=True)
class LoadedModel:
    """A network from a file.

    Attributes:
        network: network in eval mode on the CPU.
        kind: kind of file, for people.
        sha256: SHA-256 of the file.
        left_out: top-level modules in the file that the network does not have, such as a classifier for
            training only.
        checkpoint_key: key of the weights in the file; None for files of other kinds.
        notes: which weights were taken, and which others the file holds; a sentence each.
    """

    network: nn.Module
    kind: str
    sha256: str = ""
    left_out: tuple[str, ...] = ()
    checkpoint_key: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loading:
    """A file that is being loaded; see `load_model` for the fields that are arguments of it."""

    path: Path
    data: bytes
    factory: str | Factory | None
    arguments: Mapping[str, Any]
    zoo: Mapping[str, Factory]
    trust_code: bool
    key: str | None


def load_model(
    path: Path,
    factory: str | Factory | None = None,
    arguments: Mapping[str, Any] | None = None,
    zoo: Mapping[str, Factory] | None = None,
    trust_code: bool = False,
    checkpoint_key: str | None = None,
) -> LoadedModel:
    """Load a network.

    Args:
        path: path of the file.
        factory: function that makes the network for weights: a callable, or ``module:callable``. It is
            refused for a file that holds the network itself.
        arguments: keyword arguments of the factory.
        zoo: networks that a file can name, by name.
        trust_code: whether an exported program or a pickled module can be loaded, which runs code from the
            file.
        checkpoint_key: dotted path of the weights in a checkpoint, such as ``state_dict_ema``; None takes
            those at the usual key, or the only ones that fit the network.

    Raises:
        ModelError: the file cannot be loaded; the text names the kind of file and the problem.
        CaptureError: the network in the file cannot be used, such as one that is quantized already.
    """
    data = read_file(path)
    loaded = _load(Loading(path, data, factory, arguments or {}, zoo or {}, trust_code, checkpoint_key))
    network = without_wrapper(loaded.network)
    check_usable(network)
    _check_finite(network, path)
    set_to_inference(network)
    return replace(loaded, network=network, sha256=hashlib.sha256(data).hexdigest())


def _load(file: Loading) -> LoadedModel:
    path, data = file.path, file.data
    if is_safetensors(path, data):
        return _from_content(file, read_safetensors(path, data))
    members = archive_members(path, data)
    names = [member.filename for member in members]
    if any(name.endswith("archive_format") for name in names) or any("/models/" in name for name in names):
        return _whole(
            file, LoadedModel(load_exported_program(path, data, file.trust_code), "exported program")
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise ModelError(
            f"{path}: TorchScript, which torch.export cannot capture. Save the weights, "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt'), and name the Python network with "
            "--factory"
        )
    if names and not any(name.endswith("data.pkl") for name in names):
        raise ModelError(f"{path}: a zip archive without weights or an exported program of torch")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        # Their size would not be bounded by that of the file.
        raise ModelError(f"{path}: an archive with compressed members; torch writes none")
    survey = survey_pickles(
        path, data, [member for member in members if member.filename.endswith("data.pkl")]
    )
    try:
        with warnings.catch_warnings(), stand_ins(survey) as refused:
            warnings.simplefilter("ignore")  # of what it then refuses
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the unpickler raise anything
        if not names and not data.startswith(LEGACY_START):
            raise ModelError(
                f"{path}: not a model; expected weights (safetensors, or torch.save of a state_dict or a "
                "checkpoint) or an exported program (torch.export.save)"
            ) from None
        unknown = refused or [name for name in survey.names if not is_of_tensors(name)]
        what = f"objects that cannot be read without running code ({listed(unknown)})"
        if not unknown:
            what = f"something that torch cannot read as weights ({_reason(error)})"
        return _from_unpickled(file, _unpickle(file, what))
    contents = search(content)
    if isinstance(content, StandIn):
        return _from_unpickled(file, _unpickle(file, f"a pickled object ({content.stored_name})"))
    if contents.pickled and not any(entry.has_paths for entry in contents.entries):
        what = ", ".join(f"{name} at {key_text(path)!r}" for path, name in contents.pickled.items())
        return _from_unpickled(file, _unpickle(file, f"a pickled module ({what})"))
    return _from_content(file, content)


def _unpickle(file: Loading, what: str) -> Any:
    """Content of a file that runs code; it is run if the user trusts it.

    Raises:
        ModelError: the file is not trusted, or it cannot be unpickled.
    """
    if not file.trust_code:
        raise ModelError(
            f"{file.path}: holds {what}, not only weights; a pickle runs code when it is loaded. Save the "
            "state_dict and name the network with --factory, or, if you trust the file, use --trust-code "
            "(trust_code=True)"
        )
    try:
        return torch.load(io.BytesIO(file.data), map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(
            f"{file.path}: holds {what}, and cannot be unpickled "
            f"({type(error).__name__}: {first_line(error)}); is its package installed?"
        ) from error


def _from_unpickled(file: Loading, content: Any) -> LoadedModel:
    """A pickled module, alone or in a checkpoint, or weights beside other objects."""
    if isinstance(content, nn.Module):
        return _whole(file, LoadedModel(content, "pickled module"))
    modules = search(content).modules
    if not modules or file.factory is not None:
        return _from_content(file, content)
    _refuse_arguments(file, "the network is taken from the file")
    key = preferred_module(file.path, tuple(modules), file.key)
    others = [key_text(path) for path in modules if path != key]
    notes = [f"network taken from {key_text(key)!r} of {file.path.name}"]
    notes += [f"also in the file: {listed(others)}; --checkpoint-key KEY takes another one"] if others else []
    return LoadedModel(modules[key], "pickled module", checkpoint_key=key_text(key), notes=tuple(notes))


def _whole(file: Loading, loaded: LoadedModel) -> LoadedModel:
    """A model of a file that holds the network itself, and nothing else.

    Raises:
        ModelError: a function that makes the network, its arguments, or a key in the file were given.
    """
    factory = "--factory" if isinstance(file.factory, str) else "the factory (--opengait-config)"
    options = {
        factory: file.factory is not None,
        "--model-argument": bool(file.arguments),
        "--checkpoint-key": file.key is not None,
    }
    given = [name for name, is_given in options.items() if is_given]
    if given:
        raise ModelError(
            f"{file.path}: {loaded.kind}, which holds one network with its code; leave out "
            f"{', '.join(given)}, for files with weights only"
        )
    return loaded


def _refuse_arguments(file: Loading, why: str) -> None:
    """Refuse arguments of a network that no given function makes.

    Raises:
        ModelError: there are such arguments.
    """
    if file.arguments:
        raise ModelError(
            f"{file.path}: {why}, so --model-argument ({', '.join(file.arguments)}) has no effect; leave it "
            "out, or name a function that makes the network with --factory"
        )


def _from_content(file: Loading, content: Any) -> LoadedModel:
    path, contents = file.path, search(content)
    if not contents.entries:
        raise ModelError(f"{path}: found {_describe(content)}, but no weights; save the network's state_dict")
    kind = "state_dict" if contents.entries[0].path == () else "training checkpoint"
    make, arguments, choice = file.factory, file.arguments, None
    if isinstance(make, str):
        make = import_object(make, "the model factory")
    elif make is None and isinstance(content, dict) and ARCHITECTURE_KEY in content:
        _refuse_arguments(file, "the file names its network and the arguments of it")
        make, arguments = named_architecture(path, content[ARCHITECTURE_KEY], file.zoo)
        kind = "checkpoint that names its network"
        # The arguments come from the file. The check against its weights runs before memory is allocated.
        with torch.device("meta"):
            expected = names_of(make_module(make, "the network", **arguments))
        choice = choose_weights(path, content, file.key, expected)
    elif make is None:
        raise ModelError(
            f"{path}: the file looks like a {kind}; name its network with --factory module:factory"
        )
    name = file.factory if isinstance(file.factory, str) else "the network"
    network = without_wrapper(make_module(make, name, **arguments))
    if choice is None:
        choice = choose_weights(path, content, file.key, names_of(network), partial(_accepts, file, network))
    kept = fill_network(path, network, choice.taken, len(file.data))
    notes = choice.notes(path)
    notes += [f"state that is not in the file stays as the factory made it: {listed(kept)}"] if kept else []
    return LoadedModel(
        network,
        kind,
        left_out=choice.left_out,
        checkpoint_key=choice.taken.key,
        notes=tuple(notes),
    )


def _accepts(file: Loading, network: nn.Module, weights: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a network takes weights with other names than its own, such as older ones."""
    check_tensors(file.path, weights, len(file.data))
    try:
        network.load_state_dict(dict(weights), strict=True)
    except Exception:  # networks may load their weights themselves
        return False
    return True


def _reason(error: Exception) -> str:
    """The reason in an error of torch's unpickler for weights, without its advice."""
    found = re.search(r"WeightsUnpickler error: (.*?)(?:\. Please use|$)", str(error), re.MULTILINE)
    return f"{type(error).__name__}: {found[1][:200] if found else first_line(error)}"


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dictionary with the keys {listed([name for name, _ in children(content)])}"
    return f"a {type(content).__name__}"


def _check_finite(network: nn.Module, path: Path) -> None:
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{path}: the weight {name} has NaN or infinite values")
