"""Operators in a form in which torch.export keeps batch and frames free.

torch.export turns the frame count into a constant in some calls. Each has an equal form that stays free:

- ``max_pool1d``: the same pooling over two axes, one of them of size 1,
- adaptive maxima over pixels that keep the frames: the same maxima of each frame,
- ``linspace`` with a step for each frame: numbered steps,
- pooling with a window as long as an axis: see `whole_pooling`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor
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
    """Return an adaptive maximum in which axes that keep their size are batches; else what torch computes."""
    sizes = list(output_size) if isinstance(output_size, Sequence) else [output_size] * dimensions
    axes = range(input.dim() - dimensions, input.dim())
    kept = [axis for axis, size in zip(axes, sizes, strict=True) if size is None]
    if return_indices or not kept:
        return original(input, output_size, return_indices)
    pooled = [axis for axis in axes if axis not in kept]
    if not pooled:
        return input
    order = [*range(axes.start), *kept, *pooled]
    moved = input.permute(order)
    batches = moved.shape[: -len(pooled)]
    pool = tuple(ADAPTIVE)[len(pooled) - 1]
    result = pool(
        moved.flatten(0, len(batches) - 1).unsqueeze(0), [sizes[axis - axes.start] for axis in pooled]
    )
    return result.squeeze(0).unflatten(0, batches).permute([order.index(axis) for axis in range(input.dim())])


def linspace(start: float, end: float, steps: int, **keywords: Any) -> Tensor:
    """Return what ``torch.linspace`` returns, for a free number of steps; from both ends, as torch does."""
    positions = torch.arange(steps, **keywords).to(torch.get_default_dtype())
    last = positions[-1:]
    step = (end - start) / last.clamp_min(1)
    in_first_half = (positions * 2 + 1 <= last) | (positions == 0)
    return torch.where(in_first_half, positions * step + start, (positions - last) * step + end)


def _one(setting: Setting) -> int:
    return setting if isinstance(setting, int) else setting[0]


def _is_free(start: object = None, end: object = None, steps: object = None, **keywords: object) -> bool:
    """Return whether a call of ``torch.linspace`` has numbers as its ends, and a free number of steps."""
    plain = all(isinstance(value, int | float) for value in (start, end))
    return plain and isinstance(steps, SymInt) and keywords.keys() <= {"device", "requires_grad"}


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
        elif func is torch.linspace and _is_free(*args, **(kwargs or {})):
            func = linspace
        elif func in ADAPTIVE:
            return adaptive_max_pool(*args, dimensions=ADAPTIVE[func], original=func, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


ADAPTIVE: dict[Callable[..., Any], int] = {
    functional.adaptive_max_pool1d: 1,
    functional.adaptive_max_pool2d: 2,
    functional.adaptive_max_pool3d: 3,
}
