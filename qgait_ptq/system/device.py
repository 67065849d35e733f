"""Where tensors live."""

from __future__ import annotations

import torch

from qgait_ptq.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: no such device, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        detail = " ".join(str(error).split())[:120]
        raise ConfigError(f"device {name!r} is not available ({detail})") from None
    return device
