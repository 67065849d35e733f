"""Weights from an untrusted file: they are found, unwrapped, and checked before use."""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qgait_ptq.errors import ModelError, first_line

WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "network")  # keys of training checkpoints
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
SAFETENSORS_HEADER = 8  # bytes of the header's length, before its JSON
LARGEST_HEADER = 100 * 2**20  # bytes, as in the format's description
GLOBAL = b"c"  # opcode of a pickle that names a class
LONGEST_NAME = 500  # characters of a module and its class
LEGACY_PICKLES = 4  # magic number, version, system, content
# Limits of float32 weights, which can be larger than their file (int8 weights, shared ones): a multiple of
# its size, plus some bytes.
LARGEST_EXPANSION, FREE_BYTES = 16, 64 * 2**20


def is_safetensors(path: Path, data: bytes) -> bool:
    """Return whether a file has the safetensors format: a length, then a JSON header."""
    length = int.from_bytes(data[:SAFETENSORS_HEADER], "little")
    starts = data[SAFETENSORS_HEADER : SAFETENSORS_HEADER + 1] == b"{"
    return path.suffix == ".safetensors" or (starts and length <= min(len(data), LARGEST_HEADER))


def read_safetensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """Read a safetensors file. The format has tensors only.

    Raises:
        ModelError: the file is damaged.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except Exception as error:  # the library's errors have no common base with those of torch
        raise ModelError(f"{path}: a damaged safetensors file ({first_line(error)})") from None


def check_global_names(path: Path, data: bytes, pickles: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse a pickle with an excessively long name of a class or function.

    torch searches its own error with an expression whose time grows with the square of the name's length.

    Args:
        path: path of the file, for errors.
        data: content of the file: an archive, or consecutive pickles from torch before 1.6.
        pickles: members of the archive that are pickles.

    Raises:
        ModelError: a name is too long, or the archive is damaged.
    """
    if pickles:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                streams = [io.BytesIO(archive.read(member)) for member in pickles]
        except Exception as error:  # damaged members raise many kinds of errors
            raise ModelError(f"{path}: a damaged archive ({first_line(error)})") from None
    else:
        streams = [io.BytesIO(data)] * LEGACY_PICKLES
    longest = max(map(_longest_name, streams))
    if longest > LONGEST_NAME:
        raise ModelError(f"{path}: not a model; it has a class name of {longest:,} characters")


def _longest_name(stream: io.BytesIO) -> int:
    """Return the number of characters in the longest class name of a pickle, up to the first damage."""
    longest, size = 0, stream.getbuffer().nbytes
    operations = pickletools.genops(stream)
    while True:
        start = stream.tell()
        try:
            opcode, argument, _ = next(operations)
        except StopIteration:
            return longest
        except Exception:  # torch reports the damage; it also reads a name without an end
            is_name = stream.getbuffer()[start : start + 1] == GLOBAL
            return max(longest, size - start) if is_name else longest
        if opcode.name == "GLOBAL":
            longest = max(longest, len(str(argument)))


def find_weights(path: Path, content: Any, file_bytes: int) -> tuple[dict[str, Tensor], str]:
    """Find the weights in the content of a file.

    Args:
        path: path of the file, for errors.
        content: content of the file.
        file_bytes: size of the file in bytes, which limits the size of the weights.

    Returns:
        Weights by name without the prefixes of wrappers, floating-point ones in float32; and the kind of
        file.

    Raises:
        ModelError: there are no weights, or one is not a dense tensor of real numbers.
    """
    if isinstance(content, dict):
        for key in WEIGHT_KEYS:
            if isinstance(content.get(key), dict) and _is_state_dict(content[key]):
                return _unwrapped(path, content[key], file_bytes), "training checkpoint"
        if _is_state_dict(content):
            return _unwrapped(path, content, file_bytes), "state_dict"
    described = f"a {type(content).__name__}"
    if isinstance(content, dict):
        described = f"a dictionary with the keys {', '.join(map(str, list(content)[:5]))}"
    raise ModelError(f"{path}: found {described}, but no weights; save the network's state_dict")


def check_fit(path: Path, network: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Check that weights fit a network, which can be on the meta device.

    Returns:
        Top-level modules in the file that the network does not have, such as a classifier for training only.

    Raises:
        ModelError: weights are missing, unexpected or of another shape.
    """
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
            f"{path}: its weights do not fit the network: {'; '.join(problems)}; check the network and its "
            "arguments"
        )
    return tuple(others)


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _unwrapped(path: Path, weights: Mapping[str, Tensor], file_bytes: int) -> dict[str, Tensor]:
    """Return weights without the prefixes of wrappers, in float32."""
    for name, value in weights.items():
        _check_dense(path, name, value)
    total = sum(4 * math.prod(value.shape) for value in weights.values())
    if total > LARGEST_EXPANSION * file_bytes + FREE_BYTES:
        raise ModelError(
            f"{path}: its weights would need {total / 2**20:,.0f} MiB in memory, but the file has only "
            f"{file_bytes / 2**20:,.1f} MiB; save complete weights"
        )
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return {name: v.float() if v.is_floating_point() else v for name, v in weights.items()}


def _check_dense(path: Path, name: str, value: Tensor) -> None:
    """Refuse a weight that is not a dense CPU tensor of floating-point numbers or integers."""
    kind = None
    if value.is_quantized:
        kind = "quantized"
    elif value.layout is not torch.strided:
        kind = "sparse"
    elif value.device.type != "cpu":
        kind = f"on the {value.device.type} device"
    elif value.is_complex():
        kind = "complex"
    if kind is not None:
        raise ModelError(
            f"{path}: the weight {name} is {kind}; weights must be dense tensors of real numbers"
        )
