"""Running code that was written for a GPU on the CPU.

OpenGait runs on GPUs only, so its networks call ``.cuda()`` and ask ``.is_cuda`` in their code. A copy on a
GPU has the same values. On the CPU, such a call can therefore return the tensor itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GPU = "cuda"
CPU = torch.device("cpu")
IS_CUDA = Tensor.is_cuda.__get__  # type: ignore[attr-defined]


class GpuCodeOnCpu(TorchFunctionMode):
    """Run code for a GPU on the CPU: tensors stay on the CPU and say that they are on a GPU.

    >>> with GpuCodeOnCpu():
    ...     zeros = torch.zeros(2, device="cuda").cuda()
    ...     assert zeros.is_cuda
    >>> zeros.device
    device(type='cpu')
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch with GPUs among its arguments replaced by the CPU."""
        named = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0]
        if func == IS_CUDA:  # torch makes a new object for each call
            return True
        if _is_gpu(named.get("device")):
            named["device"] = CPU
        if func is Tensor.to:
            args = (args[0], *(CPU if _is_gpu(value) else value for value in args[1:]))
        return func(*args, **named)


def _is_gpu(value: Any) -> bool:
    """Return whether a value names a GPU. torch takes plain numbers as numbers of GPUs."""
    if isinstance(value, torch.device):
        return value.type == GPU
    if isinstance(value, str):
        return value.partition(":")[0] == GPU
    return isinstance(value, int) and not isinstance(value, bool)
