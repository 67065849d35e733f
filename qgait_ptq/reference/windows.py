"""Sums and maxima of integers in windows, by the attributes of ONNX's Conv, ConvInteger and MaxPool.

Arrays are ``[n, c, *space]`` with one to three axes of space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch.nn import functional as F

from qgait_ptq.onnx_graph.view import attribute
from qgait_ptq.reference.arithmetic import Array, Quantized
from qgait_ptq.reference.saturating_sums import saturation_loss

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


@dataclass(frozen=True)
class _Window:
    """Positions of a node's windows, for each spatial axis.

    Attributes:
        before: padding before the first value.
        after: padding after the last value.
        strides: steps between windows.
        dilations: steps between values of a window.
    """

    before: list[int]
    after: list[int]
    strides: list[int]
    dilations: list[int]

    @classmethod
    def of(cls, node: onnx.NodeProto, sizes: Sequence[int], kernel: Sequence[int]) -> _Window:
        """Read the attributes of a node.

        Args:
            node: node of type Conv, ConvInteger or MaxPool.
            sizes: spatial sizes of the input.
            kernel: spatial sizes of a window.
        """
        ones = [1] * len(sizes)
        strides, dilations = attribute(node, "strides", ones), attribute(node, "dilations", ones)
        spans = [dilation * (entries - 1) + 1 for entries, dilation in zip(kernel, dilations, strict=True)]
        before, after = _padding(node, sizes, spans, strides)
        if attribute(node, "ceil_mode", 0):
            # Room for windows that end behind the padding, but not for one that begins in it.
            after = [
                min(padding + stride - 1, span - 1)
                for padding, stride, span in zip(after, strides, spans, strict=True)
            ]
        return cls(before, after, strides, dilations)

    def torch_padding(self) -> list[int]:
        """Return padding for `torch.nn.functional.pad`: pairs, the last axis first."""
        pairs = reversed(list(zip(self.before, self.after, strict=True)))
        return [size for pair in pairs for size in pair]


def _padding(
    node: onnx.NodeProto, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the padding before and after the values, of numbers (``pads``) or a word (``auto_pad``)."""
    word, axes = attribute(node, "auto_pad", b"NOTSET"), len(sizes)
    if word in (b"SAME_UPPER", b"SAME_LOWER"):
        totals = [
            max((math.ceil(size / stride) - 1) * stride + span - size, 0)
            for size, span, stride in zip(sizes, spans, strides, strict=True)
        ]
        smaller = [total // 2 for total in totals]
        larger = [total - half for total, half in zip(totals, smaller, strict=True)]
        return (smaller, larger) if word == b"SAME_UPPER" else (larger, smaller)
    pads = [0] * 2 * axes if word == b"VALID" else attribute(node, "pads", [0] * 2 * axes)
    return pads[:axes], pads[axes:]


def pool(node: onnx.NodeProto, integers: Array) -> Array:
    """Return the maxima of a MaxPool's windows. Padding is never a maximum beside values."""
    kernel = attribute(node, "kernel_shape")
    window = _Window.of(node, integers.shape[2:], kernel)
    values = torch.from_numpy(integers.astype(np.float64))
    pooled = MAX_POOLS[len(kernel) - 1](
        F.pad(values, window.torch_padding(), value=float(np.iinfo(integers.dtype).min)),
        kernel,
        window.strides,
        0,
        window.dilations,
    )
    return np.asarray(pooled.numpy().astype(integers.dtype))


def convolve(node: onnx.NodeProto, x: Quantized, weight: Quantized, bias: Array) -> Array:
    """Return the exact sums of a convolution, float64 ``[n, o, *space]``.

    Args:
        node: node of type Conv or ConvInteger.
        x: input ``[n, c, *space]``.
        weight: weight ``[o, c / groups, *kernel]``.
        bias: bias ``[o]`` in units of the sums.
    """
    window = _Window.of(node, x.integers.shape[2:], weight.integers.shape[2:])
    sums = CONVOLUTIONS[x.integers.ndim - 3](
        # Padding has the code of zero, which is zero after centring.
        F.pad(torch.from_numpy(x.centred()), window.torch_padding()),
        torch.from_numpy(weight.centred()),
        torch.from_numpy(bias),
        window.strides,
        0,
        window.dilations,
        attribute(node, "group", 1),
    )
    return np.asarray(sums.numpy())


def convolution_loss(node: onnx.NodeProto, x: Quantized, weight: Quantized) -> Array:
    """Return saturated minus exact sums of a convolution. The arguments are those of `convolve`."""
    window = _Window.of(node, x.integers.shape[2:], weight.integers.shape[2:])
    padding = [(0, 0), (0, 0), *zip(window.before, window.after, strict=True)]
    return saturation_loss(
        np.pad(x.integers, padding, constant_values=x.zero_point),
        weight.integers,
        window.strides,
        window.dilations,
        attribute(node, "group", 1),
    )
