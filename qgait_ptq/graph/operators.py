"""ATen operators of gait networks, grouped by their role in quantization.

All stages use these tables and do not compare operator names themselves.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

CONVOLUTIONS = frozenset({aten.conv1d.default, aten.conv2d.default, aten.conv3d.default})
WEIGHTED = CONVOLUTIONS | {aten.linear.default}  # arguments: input, weight, bias
RECTIFIERS = frozenset({aten.relu.default, aten.relu_.default})
LEAKY_RECTIFIERS = frozenset({aten.leaky_relu.default, aten.leaky_relu_.default})
ADDITIONS = frozenset({aten.add.Tensor, aten.add_.Tensor})
CONCATENATIONS = frozenset({aten.cat.default})

# Operators that move or drop values without changing them: input and output can share one quantizer.
RESHAPES = frozenset(
    {
        aten.reshape.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.permute.default,
        aten.transpose.int,
        aten.contiguous.default,
        aten.clone.default,
        aten.alias.default,
        aten.slice.Tensor,
        aten.select.int,
    }
)
MAX_POOLS = frozenset({aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default})
MAXIMA = frozenset({aten.amax.default})
VALUE_PRESERVING = RESHAPES | MAX_POOLS | MAXIMA

BATCH_NORMS = frozenset({aten.batch_norm.default})
MATRIX_PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default, aten.mm.default})
ATTENTIONS = frozenset({aten.scaled_dot_product_attention.default})
EINSUMS = frozenset({aten.einsum.default})
RECURRENT = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})
RECURRENT_CELLS = frozenset(
    {
        aten.lstm_cell.default,
        aten.gru_cell.default,
        aten.rnn_tanh_cell.default,
        aten.rnn_relu_cell.default,
    }
)
EMBEDDINGS = frozenset({aten.embedding.default})
BILINEAR = frozenset({aten.bilinear.default})
TRANSPOSED_CONVOLUTIONS = frozenset(
    {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
)
BROADCASTS = frozenset({aten.expand.default})
INSERTIONS = frozenset({aten.unsqueeze.default})
# Operators that compute in float, but whose stored weights can be integers in the file.
WEIGHT_ONLY = (
    RECURRENT
    | RECURRENT_CELLS
    | EMBEDDINGS
    | BILINEAR
    | TRANSPOSED_CONVOLUTIONS
    | MATRIX_PRODUCTS
    | EINSUMS
    | ATTENTIONS
)
# Operators without effect in inference.
IDENTITIES = frozenset(
    {
        aten.dropout.default,
        aten.feature_dropout.default,
        aten.alpha_dropout.default,
        aten.feature_alpha_dropout.default,
        aten.detach.default,
    }
)


def is_operator(node: object, operators: frozenset[Any]) -> bool:
    """Return whether a node calls one of some operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in operators


def operator_name(node: fx.Node) -> str:
    """Return a short name for people, such as ``conv2d``; one of several results has its operator's name."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return operator_name(node.args[0])
    target = node.target
    return target.__name__.split(".")[0] if node.op == "call_function" else str(node.op)  # type: ignore[union-attr]
