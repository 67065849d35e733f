"""Weights from an untrusted file: they are found, unwrapped, and checked before use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qgait_ptq.capture.checkpoint_contents import listed
from qgait_ptq.capture.checkpoint_messages import Candidate
from qgait_ptq.capture.weight_names import EXTRA_STATE, OPTIONAL
from qgait_ptq.errors import ModelError, first_line

SAFETENSORS_HEADER = 8  # bytes of the header's length, before its JSON
LARGEST_HEADER = 100 * 2**20  # bytes, as in the format's description
# Float32 weights may be so many times as large as their file (int8 weights, shared ones), and this more.
LARGEST_EXPANSION, FREE_BYTES = 16, 64 * 2**20


def is_safetensors(path: Path, data: bytes) -> bool:
    """Return whether a file has the safetensors format: a length, then a JSON header."""
    length = int.from_bytes(data[:SAFETENSORS_HEADER], "little")
    starts = data[SAFETENSORS_HEADER : SAFETENSORS_HEADER + 1] == b"{"
    return path.suffix.lower() == ".safetensors" or (starts and length <= min(len(data), LARGEST_HEADER))


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


def fill_network(path: Path, network: nn.Module, candidate: Candidate, file_bytes: int) -> tuple[str, ...]:
    """Load weights into the network that they match.

    Args:
        path: named in errors.
        network: from its factory; it may lie on the meta device.
        candidate: weights, and their names in the network.
        file_bytes: size of the file, which bounds the size of the weights.

    Returns:
        Names of state other than tensors, which stays as the factory made it.

    Raises:
        ModelError: a tensor is no dense tensor of real numbers, integers are in the place of floating
            weights, or the network does not take them.
    """
    weights = candidate.entry.weights
    check_tensors(path, weights, file_bytes)
    _check_types(path, network, {own: weights[name] for own, name in candidate.match.names.items()})
    state = {own: in_full_precision(weights[name]) for own, name in candidate.match.names.items()}
    on_meta = any(parameter.is_meta for parameter in network.parameters())
    try:
        done = network.load_state_dict(state, strict=False, assign=on_meta)
    except Exception as error:  # networks may load their weights themselves
        raise ModelError(f"{path}: the network does not take its weights ({first_line(error)})") from error
    missing = [name for name in done.missing_keys if not name.endswith((OPTIONAL, EXTRA_STATE))]
    if missing or done.unexpected_keys:
        raise ModelError(
            f"{path}: the network does not take its weights; missing {listed(missing)}, unexpected "
            f"{listed(done.unexpected_keys)}"
        )
    return tuple(name for name in done.missing_keys if name.endswith(EXTRA_STATE))


def check_tensors(path: Path, weights: Mapping[str, Tensor], file_bytes: int) -> None:
    """Refuse tensors that are not weights, and those that would take far more memory than their file.

    Args:
        path: named in errors.
        weights: by name.
        file_bytes: size of the file.

    Raises:
        ModelError: names the first of them.
    """
    for name, value in weights.items():
        _check_dense(path, name, value)
    total = sum(4 * math.prod(value.shape) for value in weights.values())
    if total > LARGEST_EXPANSION * file_bytes + FREE_BYTES:
        raise ModelError(
            f"{path}: its weights would need {total / 2**20:,.0f} MiB in memory, but the file has only "
            f"{file_bytes / 2**20:,.1f} MiB; save complete weights"
        )


def _check_types(path: Path, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse integers in the place of floating weights: without their scale, they are other weights.

    Buffers may hold integers that are no codes of weights: counts, indices, and masks of 0 and 1.

    Raises:
        ModelError: names the first of them.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    own = {**dict(network.named_buffers(remove_duplicate=False)), **parameters}
    for name, value in state.items():
        if name not in own or not own[name].is_floating_point() or value.is_floating_point():
            continue
        if name in parameters or not _are_plain_numbers(value):
            kind, expected = _type_name(value), _type_name(own[name])
            raise ModelError(
                f"{path}: {name} has the type {kind}, but the network has {expected} there. Integers without "
                "their scale are other weights; save the network before quantization"
            )


def _are_plain_numbers(value: Tensor) -> bool:
    if value.dtype not in (torch.int8, torch.uint8):
        return True
    return value.numel() <= 1 or bool(((value == 0) | (value == 1)).all())


def _type_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def in_full_precision(value: Tensor) -> Tensor:
    """Floating numbers as float32; others as they are."""
    return value.float() if value.is_floating_point() else value


def _check_dense(path: Path, name: str, value: Tensor) -> None:
    """Refuse a weight that is not a dense CPU tensor of floating-point numbers or integers."""
    kind = None
    if value.is_quantized:
        kind = "quantized"
    elif value.is_nested:
        kind = "nested"
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
