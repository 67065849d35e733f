"""Operators in a form in which torch.export keeps batch and frames free.

torch.export turns the frame count into a constant where a network calls ``max_pool1d``. The same pooling over
two axes, one of them of size 1, stays free. It does so too where the frame count is a kernel size, as in an
average over all frames with ``avg_pool1d``. The mean over the axes stays free. The results are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qgait_ptq.capture.whole_pooling import MAXIMA, MEANS, reduce_whole_axes

Setting = int | Sequence[int]


def max_pool1d(
    input: Tensor,
    kernel_size: Setting,
    stride: Setting | None = None,
    padding: Setting = 0,
    dilation: Setting = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return what ``torch.nn.functional.max_pool1d`` returns, computed by ``max_pool2d``."""
    kernel, steps = _one(kernel_size), _one(stride if stride else kernel_size)
    pool = functional.max_pool2d_with_indices if return_indices else functional.max_pool2d
    sizes = ((1, kernel), (1, steps), (0, _one(padding)), (1, _one(dilation)), ceil_mode)
    result: Tensor | tuple[Tensor, Tensor] = pool(input.unsqueeze(-2), *sizes)
    if isinstance(result, tuple):  # indices within a row of one are indices along the axis
        return result[0].squeeze(-2), result[1].squeeze(-2)
    return result.squeeze(-2)


def adaptive_max_pool(
    input: Tensor,
    output_size: Setting | None,
    return_indices: bool = False,
    *,
    dimensions: int,
    original: Callable[..., Any],
) -> Any:
    """Return the maximum over all pooled axes where one value is left of each; else what torch computes."""
    sizes = output_size if isinstance(output_size, Sequence) else [output_size]
    if return_indices or any(size != 1 for size in sizes):
        return original(input, output_size, return_indices)
    return input.amax(tuple(range(-dimensions, 0)), keepdim=True)


def average_pool(
    input: Tensor,
    kernel_size: Setting,
    stride: Setting | None = None,
    padding: Setting = 0,
    *others: Any,
    dimensions: int,
    original: Callable[..., Any],
    **named: Any,
) -> Any:
    """Return the mean over the pooled axes if the kernel has their free sizes; else what torch computes."""
    kernel = kernel_size if isinstance(kernel_size, Sequence) else [kernel_size]
    kernel = kernel if len(kernel) == dimensions else [kernel[0]] * dimensions
    sizes = input.shape[-dimensions:]
    is_free = any(isinstance(size, torch.SymInt) for size in kernel)
    is_plain = padding == 0 and not others and not named
    if is_free and is_plain and all(map(_same_size, kernel, sizes)):
        return input.mean(tuple(range(-dimensions, 0)), keepdim=True)
    return original(input, kernel_size, stride, padding, *others, **named)


def _same_size(first: int | torch.SymInt, second: int | torch.SymInt) -> bool:
    """Return whether two sizes are always equal, without fixing a free one."""
    return bool(statically_known_true(first == second))


def _one(setting: Setting) -> int:
    return setting if isinstance(setting, int) else setting[0]


class ExportableOperators(TorchFunctionMode):
    """Context in which calls of some operators are replaced by equal ones that torch.export takes."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, or its replacement."""
        if func in MEANS or func in MAXIMA:
            args, kwargs = reduce_whole_axes(func, args, kwargs or {})
        if func in (torch.max_pool1d, functional.max_pool1d):
            func = max_pool1d
        elif func in ADAPTIVE:
            return adaptive_max_pool(*args, dimensions=ADAPTIVE[func], original=func, **(kwargs or {}))
        elif func in AVERAGE:
            return average_pool(*args, dimensions=AVERAGE[func], original=func, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


ADAPTIVE: dict[Callable[..., Any], int] = {
    functional.adaptive_max_pool1d: 1,
    functional.adaptive_max_pool2d: 2,
    functional.adaptive_max_pool3d: 3,
}
AVERAGE: dict[Callable[..., Any], int] = {
    functional.avg_pool1d: 1,
    functional.avg_pool2d: 2,
    functional.avg_pool3d: 3,
}
