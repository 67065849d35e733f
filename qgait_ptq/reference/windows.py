"""Sums and maxima of integers in windows, by the attributes of ONNX's Conv, ConvInteger and MaxPool.

Arrays are ``[n, c, *space]`` with one to three axes of space.
"""

from __future__ import annotations

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
    """Where the windows of a node lie, for each axis of space.

    Attributes:
        before: padding in front of the first value.
        after: padding behind the last value.
        strides: between windows.
        dilations: between values of a window.
    """

    before: list[int]
    after: list[int]
    strides: list[int]
    dilations: list[int]

    @classmethod
    def of(cls, node: onnx.NodeProto, spatial: int) -> _Window:
        """Read the attributes of a node with some axes of space."""
        pads = attribute(node, "pads", [0] * 2 * spatial)
        ones = [1] * spatial
        return cls(
            pads[:spatial],
            pads[spatial:],
            attribute(node, "strides", ones),
            attribute(node, "dilations", ones),
        )

    def torch_padding(self) -> list[int]:
        """Padding as `torch.nn.functional.pad` takes it: pairs, the last axis first."""
        pairs = reversed(list(zip(self.before, self.after, strict=True)))
        return [size for pair in pairs for size in pair]


def pool(node: onnx.NodeProto, integers: Array) -> Array:
    """Return the maxima of a MaxPool's windows; padding is none of them."""
    spatial = integers.ndim - 2
    window = _Window.of(node, spatial)
    values = torch.from_numpy(integers.astype(np.float64))
    pooled = MAX_POOLS[spatial - 1](
        F.pad(values, window.torch_padding(), value=-torch.inf),
        attribute(node, "kernel_shape"),
        window.strides,
        0,
        window.dilations,
        bool(attribute(node, "ceil_mode", 0)),
    )
    return np.asarray(pooled.numpy().astype(integers.dtype))


def convolve(node: onnx.NodeProto, x: Quantized, weight: Quantized, bias: Array) -> Array:
    """Return the exact sums of a convolution, float64 ``[n, o, *space]``.

    Args:
        node: Conv or ConvInteger.
        x: what it reads, ``[n, c, *space]``.
        weight: ``[o, c / groups, *kernel]``.
        bias: in units of the sums, ``[o]``.
    """
    spatial = x.integers.ndim - 2
    window = _Window.of(node, spatial)
    sums = CONVOLUTIONS[spatial - 1](
        # Padding is with what stands for zero, which is zero once centred.
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
    """Return what a convolution's sums lose where pairs of products saturate; arguments as of `convolve`."""
    window = _Window.of(node, x.integers.ndim - 2)
    padding = [(0, 0), (0, 0), *zip(window.before, window.after, strict=True)]
    return saturation_loss(
        np.pad(x.integers, padding, constant_values=x.zero_point),
        weight.integers,
        window.strides,
        window.dilations,
        attribute(node, "group", 1),
    )
