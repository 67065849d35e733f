"""Weights from a file that nobody vouches for: found, unwrapped, and checked before they are used."""

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

WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "network")  # of training checkpoints
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
SAFETENSORS_HEADER = 8  # bytes of the header's length, before its JSON
LARGEST_HEADER = 100 * 2**20  # bytes, as in the format's description
# Float32 weights may be so many times as large as their file (int8 weights, shared ones), and this more.
GLOBAL = b"c"  # the opcode of a pickle that names a class
LONGEST_NAME = 500  # letters of a module and its class
LEGACY_PICKLES = 4  # magic number, version, system, content
LARGEST_EXPANSION, FREE_BYTES = 16, 64 * 2**20


def is_safetensors(path: Path, data: bytes) -> bool:
    """Whether a file is of the safetensors format: a length, then a JSON header."""
    length = int.from_bytes(data[:SAFETENSORS_HEADER], "little")
    starts = data[SAFETENSORS_HEADER : SAFETENSORS_HEADER + 1] == b"{"
    return path.suffix == ".safetensors" or (starts and length <= min(len(data), LARGEST_HEADER))


def read_safetensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """Read a safetensors file; the format holds tensors only.

    Raises:
        ModelError: it is damaged.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except Exception as error:  # the library's errors have no common base with those of torch
        raise ModelError(f"{path}: a damaged safetensors file ({first_line(error)})") from None


def check_global_names(path: Path, data: bytes, pickles: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse a pickle with the name of a class or function longer than any is.

    torch searches its own error with an expression whose time grows with the square of the name's length.

    Args:
        path: named in errors.
        data: content of the file: an archive, or pickles one behind the other, as torch wrote before 1.6.
        pickles: members of the archive that are pickles.

    Raises:
        ModelError: there is such a name, or the archive is damaged.
    """
    if pickles:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                streams = [io.BytesIO(archive.read(member)) for member in pickles]
        except Exception as error:  # damaged members raise many kinds
            raise ModelError(f"{path}: a damaged archive ({first_line(error)})") from None
    else:
        streams = [io.BytesIO(data)] * LEGACY_PICKLES
    longest = max(map(_longest_name, streams))
    if longest > LONGEST_NAME:
        raise ModelError(f"{path}: not a model; it names a class with {longest:,} letters")


def _longest_name(stream: io.BytesIO) -> int:
    """Letters of the longest name of a class that a pickle holds, as far as it is one."""
    longest, size = 0, stream.getbuffer().nbytes
    operations = pickletools.genops(stream)
    while True:
        start = stream.tell()
        try:
            opcode, argument, _ = next(operations)
        except StopIteration:
            return longest
        except Exception:  # torch says what is wrong; it takes a name that nothing ends, too
            is_name = stream.getbuffer()[start : start + 1] == GLOBAL
            return max(longest, size - start) if is_name else longest
        if opcode.name == "GLOBAL":
            longest = max(longest, len(str(argument)))


def find_weights(path: Path, content: Any, file_bytes: int) -> tuple[dict[str, Tensor], str]:
    """Find the weights in what a file holds.

    Args:
        path: named in errors.
        content: of the file.
        file_bytes: size of the file, which bounds the size of the weights.

    Returns:
        Weights by name, floating ones in float32 and without the prefixes of wrappers; and what the file is.

    Raises:
        ModelError: there are none, or a tensor is no dense tensor of real numbers.
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
    raise ModelError(f"{path}: holds {described}, in which no weights are found")


def check_fit(path: Path, network: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Check that weights fit a network, which may lie on the meta device.

    Returns:
        Top-level modules that the file has weights of and the network has not, such as a classifier that was
        needed for training only.

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
            f"{path}: its weights do not fit the network: {'; '.join(problems)}; is it the right network, "
            "with the right arguments?"
        )
    return tuple(others)


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _unwrapped(path: Path, weights: Mapping[str, Tensor], file_bytes: int) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, in full precision."""
    for name, value in weights.items():
        _check_dense(path, name, value)
    total = sum(4 * math.prod(value.shape) for value in weights.values())
    if total > LARGEST_EXPANSION * file_bytes + FREE_BYTES:
        raise ModelError(
            f"{path}: its weights would take {total / 2**20:,.0f} MiB in memory, and the file has "
            f"{file_bytes / 2**20:,.1f} MiB; weights are stored whole"
        )
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return {name: v.float() if v.is_floating_point() else v for name, v in weights.items()}


def _check_dense(path: Path, name: str, value: Tensor) -> None:
    """Refuse what is no dense tensor of floating or whole numbers in memory."""
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
            f"{path}: the weight {name} is {kind}; weights are dense tensors of floating or whole numbers"
        )
