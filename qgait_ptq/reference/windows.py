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
    def of(cls, node: onnx.NodeProto, spatial: int) -> _Window:
        """Read the attributes of a node with a number of spatial axes."""
        pads = attribute(node, "pads", [0] * 2 * spatial)
        ones = [1] * spatial
        return cls(
            pads[:spatial],
            pads[spatial:],
            attribute(node, "strides", ones),
            attribute(node, "dilations", ones),
        )

    def torch_padding(self) -> list[int]:
        """Return padding for `torch.nn.functional.pad`: pairs, the last axis first."""
        pairs = reversed(list(zip(self.before, self.after, strict=True)))
        return [size for pair in pairs for size in pair]


def pool(node: onnx.NodeProto, integers: Array) -> Array:
    """Return the maxima of a MaxPool's windows. Padding is never a maximum."""
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
        node: node of type Conv or ConvInteger.
        x: input ``[n, c, *space]``.
        weight: weight ``[o, c / groups, *kernel]``.
        bias: bias ``[o]`` in units of the sums.
    """
    spatial = x.integers.ndim - 2
    window = _Window.of(node, spatial)
    sums = CONVOLUTIONS[spatial - 1](
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
    window = _Window.of(node, x.integers.ndim - 2)
    padding = [(0, 0), (0, 0), *zip(window.before, window.after, strict=True)]
    return saturation_loss(
        np.pad(x.integers, padding, constant_values=x.zero_point),
        weight.integers,
        window.strides,
        window.dilations,
        attribute(node, "group", 1),
    )
