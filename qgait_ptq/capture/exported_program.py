"""Loading a `torch.export` program, which runs code from the file.

torch unpickles payloads of such an archive, evaluates its symbolic sizes as Python, generates Python from its
names, and runs its operators. Checks of the members cannot make that safe, so an exported program is loaded
only if the user trusts it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import cast

import torch
from torch import nn

from qgait_ptq.capture.quiet import quiet_torch
from qgait_ptq.errors import ModelError, first_line


def load_exported_program(path: Path, data: bytes, trust_code: bool) -> nn.Module:
    """Load a file of `torch.export.save`.

    Args:
        path: path of the file, for errors.
        data: content of the file.
        trust_code: whether loading can run code from the file.

    Raises:
        ModelError: the file is not trusted, or this torch cannot load it.
    """
    if not trust_code:
        raise ModelError(
            f"{path}: an exported program; torch runs code from such a file when it loads it. If you trust "
            "the file, add --trust-code (trust_code=True). A safe alternative: save the weights (torch.save "
            "of the state_dict, or safetensors) and name the network with --factory module:factory"
        )
    try:
        with quiet_torch():
            return cast(nn.Module, torch.export.load(io.BytesIO(data)).module(check_guards=False))
    except Exception as error:
        raise ModelError(
            f"{path}: looks like an exported program, but torch {torch.__version__} cannot load it "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
