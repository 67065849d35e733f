"""Error-compensating weight rounding: the mathematics of one layer.

GPTQ (Frantar et al., ICLR 2023) rounds the columns of a weight one after the other and corrects the remaining
columns for the error, given the inputs of the layer. Its successors (GPFQ; Qronos, Zhang et al. 2025) also
use the inputs of the float layer. With float inputs X and quantized inputs X̃ they minimise
``‖W X − Q X̃‖²``. That equals ``‖(W* − Q) X̃‖²`` up to a constant, where ``W*`` is the least-squares
solution of ``W* X̃ ≈ W X``. `corrected_weight` followed by `round_columns` computes it.

All functions take groups: weights ``[g, o, k]`` and second moments ``[g, k, k]``, for grouped convolutions
such as per-part fully connected layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qgait_ptq.quantizer.grid import IntegerGrid
from qgait_ptq.system.invariants import present

FEW_COLUMNS = 10.0  # extra damping for few columns: share of the diagonal, times size / columns
FEW_FOR_SCALE = 0.3  # the same for a scale, a single number for each output channel


@dataclass
class InputMoments:
    """Moments of a layer's inputs, with quantization before the layer (X̃) and without (X).

    Attributes:
        count: number of columns.
        mean_quantized: mean of X̃, ``[g, k]`` float64.
        mean_float: mean of X.
        spread: second moments of X̃ about the mean, ``[g, k, k]`` float64.
        cross_spread: cross moments of X and X̃ about the means, ``[g, k, k]``.
    """

    count: int
    mean_quantized: Tensor
    mean_float: Tensor
    spread: Tensor
    cross_spread: Tensor

    @classmethod
    def of(cls, quantized: Tensor, reference: Tensor) -> InputMoments:
        """Return the moments of columns ``[g, k, n]`` of X̃ and X."""
        # About the means: otherwise, rounding errors of float32 exceed the variation of values around a large
        # mean, or of a single column.
        count = quantized.shape[-1]
        mean, mean_float = (columns.mean(-1, dtype=torch.float64) for columns in (quantized, reference))
        about = quantized - mean[..., None].to(quantized.dtype)
        about_float = reference - mean_float[..., None].to(reference.dtype)
        spread, cross = ((columns @ about.mT).double() / count for columns in (about, about_float))
        return cls(count, mean, mean_float, spread, cross)

    def merge(self, other: InputMoments) -> InputMoments:
        """Return the moments of both sets of columns together."""
        count = self.count + other.count
        a, b = self.count / count, other.count / count
        apart = self.mean_quantized - other.mean_quantized
        apart_float = self.mean_float - other.mean_float
        return InputMoments(
            count,
            a * self.mean_quantized + b * other.mean_quantized,
            a * self.mean_float + b * other.mean_float,
            a * self.spread + b * other.spread + a * b * _outer(apart, apart),
            a * self.cross_spread + b * other.cross_spread + a * b * _outer(apart_float, apart),
        )

    def about_zero(self) -> tuple[Tensor, Tensor]:
        """Return ``E[X̃ X̃ᵀ]`` and ``E[X X̃ᵀ]``, for layers that have no bias to absorb a mean error."""
        second = self.spread + _outer(self.mean_quantized, self.mean_quantized)
        return second, self.cross_spread + _outer(self.mean_float, self.mean_quantized)


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    return rows[..., :, None] * columns[..., None, :]


def damped(second: Tensor, count: int, damping: float) -> Tensor:
    """Add damping to the diagonal: more if there are few columns for the size of the matrix.

    Args:
        second: second moments, ``[g, k, k]``.
        count: number of columns that they were estimated from.
        damping: share of the mean of the diagonal, for ``count ≫ k``.
    """
    diagonal = second.diagonal(dim1=-2, dim2=-1)
    return second + torch.diag_embed(_amount(second, count, damping, FEW_COLUMNS).expand_as(diagonal))


def _amount(second: Tensor, count: int, damping: float, few: float) -> Tensor:
    """Return the damping of each group, ``[g, 1]``; any amount serves where all inputs are constant."""
    share = damping + few * second.shape[-1] / max(count, 1)
    amount = share * second.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    return torch.where(amount > 0, amount, 1.0)


def _positive_definite(matrix: Tensor) -> Tensor:
    """Add to the diagonal until a Cholesky factor exists.

    With little damping, rounding errors can exceed the smallest eigenvalues.
    """
    amount = matrix.diagonal(dim1=-2, dim2=-1).abs().mean()
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    while bool((torch.linalg.cholesky_ex(matrix).info > 0).any()):
        matrix, amount = matrix + amount * identity, 10 * amount
    return matrix


def corrected_weight(
    weight: Tensor, second: Tensor, cross: Tensor, count: int, damping: float, start: Tensor | None = None
) -> Tensor:
    """Return W*, which maps the quantized inputs of a layer to its float output, by ridge regression.

    ``W* = V + (W C − V H) (H + λI)⁻¹`` with H = second, C = cross and V = start. The regularizer pulls W*
    towards V.

    Args:
        weight: float weight W, ``[g, o, k]``.
        second: second moments, ``[g, k, k]``.
        cross: cross moments, ``[g, k, k]``.
        count: number of columns that they were estimated from.
        damping: see `damped`.
        start: weight V, ``[g, o, k]``; None for the float weight.
    """
    near = weight.double() if start is None else start.double()
    right = weight.double() @ cross - near @ second
    solution: Tensor = torch.linalg.solve(damped(second, count, damping), right, left=False)
    return near + solution


def round_columns(
    weight: Tensor,
    scale: Tensor,
    grid: IntegerGrid,
    second: Tensor,
    count: int,
    damping: float,
    partners: Tensor | None = None,
) -> Tensor:
    """Round a weight to integers ``[g, o, k]`` column by column, with GPTQ's error compensation.

    Columns are ordered by decreasing input energy: strong columns are rounded while many others can still
    compensate. If the grid limits pairs, a column keeps within the limit with its rounded neighbours. For a
    neighbour that is not rounded yet, it gives up half of the excess. Later columns compensate for that too.

    Args:
        weight: float weight, ``[g, o, k]``.
        scale: scale of each output channel, ``[g, o]``.
        grid: grid of the weight.
        second: second moments, ``[g, k, k]``.
        count: number of columns that they were estimated from.
        damping: see `damped`.
        partners: neighbours of each column, see `pairs.neighbours`; needed if the grid limits pairs.
    """
    hessian = _positive_definite(damped(second, count, damping))
    order = hessian.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True)
    groups, outputs, size = weight.shape
    hessian = hessian.gather(1, order[:, :, None].expand_as(hessian))
    hessian = hessian.gather(2, order[:, None, :].expand_as(hessian))
    spread = order[:, None, :].expand(groups, outputs, size)
    remaining = weight.double().gather(2, spread)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    step = scale.double()
    integers = torch.empty_like(remaining)
    pairs = None if partners is None or grid.pair_limit is None else _Pairs(partners, order, grid)
    for start in range(0, size, 64):  # one product corrects all columns of later chunks
        stop = min(start + 64, size)
        errors = torch.empty_like(remaining[:, :, start:stop])
        for column in range(start, stop):
            values = remaining[:, :, column]
            rounded = (values / step).round().clamp(grid.quant_min, grid.quant_max)
            if pairs is not None:
                rounded = pairs.keep_within(column, rounded, integers, remaining, step)
            integers[:, :, column] = rounded
            error = (values - rounded * step) / factor[:, None, column, column]
            errors[:, :, column - start] = error
            remaining[:, :, column:stop] -= error[:, :, None] * factor[:, None, column, column:stop]
        remaining[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return torch.empty_like(integers).scatter_(2, spread, integers)


class _Pairs:
    """The limit of neighbouring weights, while columns are rounded in their order."""

    def __init__(self, partners: Tensor, order: Tensor, grid: IntegerGrid) -> None:
        """Prepare the neighbours; `order` ``[g, k]`` lists the columns in the order of rounding."""
        self.grid, self.limit = grid, present(grid.pair_limit)
        turns = torch.arange(order.shape[1], device=order.device).expand_as(order)
        turn = torch.empty_like(order).scatter_(1, order, turns)
        # In the order of rounding: [g, k, 2], −1 where there is no neighbour.
        mine = partners[order]
        theirs = turn.gather(1, mine.clamp_min(0).flatten(1)).reshape(mine.shape)
        self.turn = torch.where(mine < 0, mine, theirs)

    def keep_within(
        self, column: int, wanted: Tensor, integers: Tensor, remaining: Tensor, step: Tensor
    ) -> Tensor:
        """Return the integers ``[g, o]`` of a column, reduced to the limit with their neighbours."""
        low, high = self.grid.quant_min, self.grid.quant_max
        for turn in self.turn[:, column].unbind(1):
            index = turn.clamp_min(0)[:, None, None].expand(-1, wanted.shape[1], 1)
            settled = (turn < column)[:, None]
            pending = (remaining.gather(2, index)[..., 0] / step).clamp(low, high)
            other = torch.where(settled, integers.gather(2, index)[..., 0], pending)
            other = torch.where((turn < 0)[:, None], 0.0, other)
            excess = ((wanted + other).abs() - self.limit).clamp_min(0)
            excess = torch.where(wanted * other > 0, excess, 0.0)
            taken = torch.where(settled, excess, (excess / 2).round())
            wanted = wanted - wanted.sign() * taken
        return wanted


def refitted_scale(
    integers: Tensor,
    scale: Tensor,
    weight: Tensor,
    second: Tensor,
    cross: Tensor,
    count: int,
    damping: float,
    start: Tensor | None = None,
    floor: float = 0.5,
) -> Tensor:
    """Return the scale of each output channel with which the integers best match the float output.

    ``s = (w C + λ v) qᵀ / (q (H + λI) qᵀ)``, the least-squares solution of ``s · q X̃ ≈ w X``. As in
    `corrected_weight`, few columns do not determine it: λ pulls ``s · q`` towards V.

    Args:
        integers: rounded weight, ``[g, o, k]``.
        scale: scale of the rounding, ``[g, o]``. It is kept if the solution differs by more than a factor of
            `floor` or its inverse, as for channels that are zero.
        weight: float weight, ``[g, o, k]``.
        second: second moments, ``[g, k, k]``.
        cross: cross moments, ``[g, k, k]``.
        count: number of columns that they were estimated from.
        damping: see `damped`.
        start: weight V, ``[g, o, k]``; None for the float weight.
        floor: see `scale`.
    """
    near = weight.double() if start is None else start.double()
    amount = _amount(second, count, damping, FEW_FOR_SCALE)[..., None]
    correlation = ((weight.double() @ cross + amount * near) * integers).sum(-1)
    energy = ((integers @ second + amount * integers) * integers).sum(-1)
    solution = correlation / energy.clamp_min(torch.finfo(torch.float64).tiny)
    share = solution / scale.double()
    return torch.where((share > floor) & (share < 1 / floor), solution, scale.double()).to(scale.dtype)
