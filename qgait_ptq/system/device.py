"""Choice of the device for tensors, and its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.processes import processes


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
    in float32 then differ visibly, and equalization refuses its result. The caller's settings are restored.
    """
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
