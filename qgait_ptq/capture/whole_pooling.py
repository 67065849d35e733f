"""Pooling whose window is as long as an axis, such as ``avg_pool2d(x, x.size()[2:])``.

torch.export turns the sizes of a window into constants, so a captured window is right at few frame counts.
The mean or the maximum over the axis is the same, and has no constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Pool = Callable[..., Any]
# Pooling operators, with the number of axes that each pools.
MEANS: dict[Pool, int] = {
    functional.avg_pool1d: 1,
    functional.avg_pool2d: 2,
    functional.avg_pool3d: 3,
}
MAXIMA: dict[Pool, int] = {
    functional.max_pool1d: 1,
    torch.max_pool1d: 1,
    functional.max_pool2d: 2,
    torch.max_pool2d: 2,
    functional.max_pool3d: 3,
    torch.max_pool3d: 3,
}
# Settings with which an operator does more than to pool each window, and their usual values.
PLAIN = {"ceil_mode": False, "divisor_override": None, "return_indices": False}
MEAN_ARGUMENTS = (
    *("input", "kernel_size", "stride", "padding"),
    *("ceil_mode", "count_include_pad", "divisor_override"),
)
MAXIMUM_ARGUMENTS = (
    *("input", "kernel_size", "stride", "padding"),
    *("dilation", "ceil_mode", "return_indices"),
)


def reduce_whole_axes(
    pool: Pool, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Compute a pooling along the axes that its window covers.

    Args:
        pool: one of `MEANS` or `MAXIMA`.
        args: positional arguments of its call.
        kwargs: keyword arguments of its call.

    Returns:
        Arguments of the pooling that is left, with a window of 1 along these axes; the given arguments if
        there are no such axes.
    """
    is_mean = pool in MEANS
    names = MEAN_ARGUMENTS if is_mean else MAXIMUM_ARGUMENTS
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    tensor, axes = named["input"], (MEANS if is_mean else MAXIMA)[pool]
    whole = _whole_axes(tensor, named, axes)
    if not whole:
        return tuple(args), dict(kwargs)
    reduced = tensor.mean(whole, keepdim=True) if is_mean else tensor.amax(whole, keepdim=True)
    left = {axis + axes for axis in whole}
    kernel = [1 if axis in left else size for axis, size in enumerate(_each(named["kernel_size"], axes))]
    stride = _each(named.get("stride") or named["kernel_size"], axes)
    named["stride"] = [1 if axis in left else step for axis, step in enumerate(stride)]
    return (reduced,), {
        name: value for name, value in (named | {"kernel_size": kernel}).items() if name != "input"
    }


def _whole_axes(tensor: Tensor, named: Mapping[str, Any], axes: int) -> list[int]:
    """Return the axes of free size, counted from the end, that the window covers."""
    if any(named.get(name, usual) not in (usual, None) for name, usual in PLAIN.items()):
        return []
    kernel, padding, dilation = (
        _each(named.get(name, usual), axes)
        for name, usual in (("kernel_size", 1), ("padding", 0), ("dilation", 1))
    )
    return [
        axis - axes
        for axis in range(axes)
        if _is_size(kernel[axis], tensor.shape[axis - axes]) and (padding[axis], dilation[axis]) == (0, 1)
    ]


def _is_size(length: Any, size: Any) -> bool:
    """Return whether the length of a window is the size of an axis at all sizes, not by accident at one."""
    both_free = isinstance(length, torch.SymInt) and isinstance(size, torch.SymInt)
    return both_free and length.node.expr == size.node.expr


def _each(setting: Any, axes: int) -> list[Any]:
    """Return the setting of each axis."""
    values = list(setting) if isinstance(setting, Sequence) else [setting]
    return values * axes if len(values) == 1 else values
