"""Choice of the device for tensors, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.processes import processes

Item = TypeVar("Item")


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is a GPU if there is one, else the CPU.

    In a run of several processes, each takes a GPU of its own: the one with its number on the machine.

    Raises:
        ConfigError: the device does not exist on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes().count > 1:
        name = f"cuda:{processes().local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        detail = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"device {name!r} is not available on this machine ({detail}); use cpu or auto"
        ) from None
    return device


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Compute in float32 without TF32, and with deterministic convolutions.

    By default, convolutions on NVIDIA GPUs round their inputs to 10 bits (TF32). Two networks that are equal
    in float32 then differ visibly, and equalization refuses its result. The caller's settings are restored,
    whether they were made with torch's older switches (``allow_tf32``) or the newer ones
    (``fp32_precision``).
    """
    cudnn, places = torch.backends.cudnn, _precisions()
    chosen = [place.fp32_precision for place in places]
    products = _readable(torch.get_float32_matmul_precision)
    convolutions = _readable(lambda: cudnn.allow_tf32)
    repeatable = cudnn.benchmark, cudnn.deterministic
    try:
        for place in places:  # torch refuses the older switches where the newer ones say something else
            place.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = repeatable
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for place, value in zip(places, chosen, strict=True):
            place.fp32_precision = value


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Restore torch's random numbers after a block that seeds them."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield


def _precisions() -> list[Any]:
    """Return what has a newer switch."""
    backends = torch.backends
    operators = {backends.cudnn: ("conv", "rnn"), backends.mkldnn: ("matmul", "conv", "rnn")}
    each = [getattr(library, name) for library, names in operators.items() for name in names]
    return [backends, backends.cuda.matmul, *operators, *each]


def _readable(read: Callable[[], Item]) -> Item | None:
    """Return an older switch; None if a newer one is set to something that it cannot say."""
    try:
        return read()
    except RuntimeError:
        return None
