"""Input columns of a layer. Its weight multiplies each of them; random ones give the moments of the input."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from qgait_ptq.calibration.compensation import InputMoments
from qgait_ptq.graph.operators import CONVOLUTIONS, is_operator
from qgait_ptq.graph.shapes import observed_integer
from qgait_ptq.graph.views import WeightedLayer
from qgait_ptq.system.invariants import present

ITEM_SHARE = 8  # drawn frames or sequences have this many times the columns that are used
COLUMNS = 24_576  # largest number of columns for up to SEQUENCES sequences; more sequences give more columns
SEQUENCES = 128
PRODUCTS = 3e11  # multiplications that the additional columns of a layer may cost
PIECE = 1 << 24  # values of columns that are in memory at once


@dataclass(frozen=True)
class InputColumns:
    """Input columns of a layer: one at each position of each frame and sequence.

    Attributes:
        values: input of the layer, with padding.
        view: columns as a view of it, ``[n, positions…, c, kernel…]``; ``[…, c]`` for a layer that is no
            convolution.
        leading: number of dimensions that count columns.
        groups: groups of the convolution; 1 for other layers.
    """

    values: Tensor
    view: Tensor
    leading: int
    groups: int

    @classmethod
    def of(cls, layer: fx.Node, weight_shape: torch.Size, tensor: Tensor) -> InputColumns:
        """Look at the input of a layer whose weight is ``[o, i, kernel…]``."""
        if not is_operator(layer, CONVOLUTIONS):
            values = tensor.contiguous()
            return cls(values, values, tensor.ndim - 1, 1)
        dimensions = tensor.ndim - 2
        settings = WeightedLayer(layer)
        padding = [amount for size in reversed(settings.padding) for amount in (size, size)]
        values = F.pad(tensor, padding).contiguous()
        view = values
        for axis, dilation in enumerate(settings.dilation):
            reach = (weight_shape[2 + axis] - 1) * dilation + 1
            view = view.unfold(2 + axis, reach, settings.stride[axis])[..., ::dilation]
        positions, taps = range(2, 2 + dimensions), range(2 + dimensions, 2 + 2 * dimensions)
        view = view.permute(0, *positions, 1, *taps)
        return cls(values, view, 1 + dimensions, observed_integer(settings.groups))

    @property
    def count(self) -> int:
        """Number of columns."""
        return math.prod(self.view.shape[: self.leading])

    @property
    def size(self) -> int:
        """Number of values in a column, over all groups."""
        return math.prod(self.view.shape[self.leading :])

    def take(self, indices: Tensor) -> Tensor:
        """Return the columns with these indices ``[n]``, as ``[groups, k, n]``."""
        places = torch.unravel_index(indices, self.view.shape[: self.leading])
        starts = sum(place * step for place, step in zip(places, self.view.stride(), strict=False))
        # Indices into memory are several times faster than indices of the view.
        taps = torch.zeros(1, dtype=torch.long, device=indices.device)
        for size, step in zip(
            self.view.shape[self.leading :], self.view.stride()[self.leading :], strict=True
        ):
            taps = (taps[:, None] + step * torch.arange(size, device=indices.device)).flatten()
        return torch.take(self.values, taps[:, None] + starts).unflatten(0, (self.groups, -1))


def input_moments(
    layer: fx.Node,
    weight_shape: torch.Size,
    inputs: Iterable[tuple[Tensor, Tensor]],
    batches: int,
    seed: int,
    columns: int = COLUMNS,
) -> InputMoments:
    """Return the moments of a layer's inputs, from random columns.

    Args:
        layer: node of the layer.
        weight_shape: shape of its weight.
        inputs: inputs of the layer in the float and in the quantized network, batch by batch.
        batches: number of batches.
        seed: random seed for the drawn columns.
        columns: number of columns, at most.
    """
    generator = torch.Generator().manual_seed(seed)
    share = max(1, columns // batches)
    total: InputMoments | None = None
    for original, features in inputs:
        items = draw_items(layer, features, share, generator)
        quantized = InputColumns.of(layer, weight_shape, features[items])
        reference = InputColumns.of(layer, weight_shape, original[items])
        indices = draw(quantized.count, share, generator).to(features.device)
        for piece in indices.split(max(1, PIECE // quantized.size)):
            part = InputMoments.of(quantized.take(piece), reference.take(piece))
            total = part if total is None else total.merge(part)
    return present(total)


def draw_items(layer: fx.Node, tensor: Tensor, share: int, generator: torch.Generator) -> Tensor:
    """Return indices of random items of a layer's input (dim 0), from which `share` columns are drawn."""
    wanted = math.ceil(share * ITEM_SHARE / _positions(layer, tensor))
    return draw(len(tensor), wanted, generator).to(tensor.device)


def number_of_columns(weight_shape: torch.Size, sequences: int) -> int:
    """Return the largest number of columns that give the moments of a layer.

    Columns of a frame resemble one another, so the number grows with the sequences. The cost of a column
    grows with the square of its size, so wide layers stay at `COLUMNS`.

    Args:
        weight_shape: shape of the weight, ``[o, i, kernel…]``.
        sequences: number of calibration sequences.
    """
    affordable = int(PRODUCTS / math.prod(weight_shape[1:]) ** 2)
    return max(COLUMNS, min(COLUMNS * sequences // SEQUENCES, affordable))


def draw(available: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Return random indices, or those of all items if there are few."""
    if wanted < available:
        return torch.randperm(available, generator=generator)[:wanted]
    return torch.arange(available)


def _positions(layer: fx.Node, tensor: Tensor) -> int:
    """Return the approximate number of columns of an item of dim 0: its spatial size."""
    return max(1, tensor[0, 0].numel()) if is_operator(layer, CONVOLUTIONS) else 1
