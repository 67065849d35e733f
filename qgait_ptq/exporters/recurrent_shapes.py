"""Shapes of LSTM, GRU and RNN for torch.export, which keep the frame count free.

torch.export finds the shape of an output by computing the operator on tensors without values. It computes a
recurrent operator step by step, so the number of steps becomes a constant of the program. The operator itself
stays in the program, and takes any number of steps. Only the shapes are needed, and they follow from those of
the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._C import DispatchKey

from qgait_ptq.graph.operators import RECURRENT, aten

KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


@contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Let recurrent operators give outputs of the right shape and no values.

    A version of torch without this table of functions exports as before: the frame count is then a constant,
    which the exporter of the program finds.
    """
    tables = {operator: getattr(operator, "py_kernels", None) for operator in RECURRENT}
    changed = {operator: table for operator, table in tables.items() if isinstance(table, dict)}
    before = {operator: dict(table) for operator, table in changed.items()}
    try:
        for operator, table in changed.items():
            table.update(dict.fromkeys(KEYS, _shapes_of(operator)))
            _forget_lookups(operator)
        yield
    finally:
        for operator, table in changed.items():
            table.clear()
            table.update(before[operator])
            _forget_lookups(operator)


def _shapes_of(operator: Any) -> Callable[..., tuple[Tensor, ...]]:
    return _lstm_shapes if operator is aten.lstm.input else _rnn_shapes


def _lstm_shapes(frames: Tensor, states: list[Tensor], *settings: Any) -> tuple[Tensor, ...]:
    hidden, cell = states
    return _outputs(frames, hidden, *settings), hidden.clone(), cell.clone()


def _rnn_shapes(frames: Tensor, hidden: Tensor, *settings: Any) -> tuple[Tensor, ...]:
    return _outputs(frames, hidden, *settings), hidden.clone()


def _outputs(
    frames: Tensor,
    hidden: Tensor,
    weights: list[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Tensor:
    """Return outputs ``[n, s, d]``, or ``[s, n, d]``, with the strides that torch gives them."""
    size = hidden.shape[-1] * (2 if bidirectional else 1)
    if not batch_first:
        return frames.new_empty((*frames.shape[:-1], size))
    batch, steps, _ = frames.shape
    return frames.new_empty((steps, batch, size)).transpose(0, 1)


def _forget_lookups(operator: Any) -> None:
    """Let torch look up the functions of an operator again."""
    operator._dispatch_cache.clear()
