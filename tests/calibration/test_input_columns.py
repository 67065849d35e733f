"""Input columns of layers, on real convolutions."""

import pytest
import torch
from torch import nn

from qgait_ptq.calibration import input_columns
from qgait_ptq.calibration.input_columns import (
    COLUMNS,
    PRODUCTS,
    InputColumns,
    input_moments,
    number_of_columns,
)


def layer_node(target, *arguments):
    """The one node of a traced layer."""
    graph = torch.fx.Graph()
    return graph.call_function(target, (graph.placeholder("x"), None, None, *arguments))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (3, 4, 11, 9)),
        (nn.Conv2d(4, 6, (3, 1), padding=(2, 0), dilation=(2, 1), groups=2, bias=False), (3, 4, 8, 5)),
        (nn.Conv1d(4, 6, 3, padding=1, bias=False), (3, 4, 11)),
        (nn.Conv3d(2, 4, (3, 1, 3), stride=(1, 2, 1), padding=(1, 0, 1), bias=False), (2, 2, 5, 4, 6)),
    ],
)
def test_a_convolution_is_its_weight_times_its_columns(layer, shape):
    operator = {1: torch.ops.aten.conv1d, 2: torch.ops.aten.conv2d, 3: torch.ops.aten.conv3d}[len(shape) - 2]
    settings = [list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups]
    tensor = torch.randn(shape)
    expected = layer(tensor).transpose(0, 1).flatten(1)
    indices = torch.randperm(expected.shape[1])[:20]
    columns = InputColumns.of(layer_node(operator.default, *settings), layer.weight.shape, tensor).take(
        indices
    )
    product = layer.weight.flatten(1).unflatten(0, (layer.groups, -1)) @ columns
    torch.testing.assert_close(product.flatten(0, 1), expected[:, indices], atol=1e-5, rtol=1e-5)


def test_a_linear_layer_is_its_weight_times_its_columns():
    layer, tensor = nn.Linear(5, 3, bias=False), torch.randn(2, 7, 5)
    indices = torch.tensor([3, 13, 0])
    columns = InputColumns.of(layer_node(torch.ops.aten.linear.default), layer.weight.shape, tensor)
    product = layer.weight @ columns.take(indices)[0]
    torch.testing.assert_close(product.T, layer(tensor).flatten(0, 1)[indices])


@pytest.mark.parametrize(
    ("shape", "sequences", "columns"),
    [
        ((8, 4, 3, 3), 20, COLUMNS),
        ((8, 4, 3, 3), 128, COLUMNS),
        ((8, 4, 3, 3), 1280, 10 * COLUMNS),
        ((8, 256, 3, 3), 1280, int(PRODUCTS / 2304**2)),
        ((8, 512, 3, 3), 1280, COLUMNS),
    ],
)
def test_more_sequences_give_more_columns_but_for_wide_layers(shape, sequences, columns):
    assert number_of_columns(torch.Size(shape), sequences) == columns


def test_few_columns_are_all_taken_in_pieces_that_fit_into_memory(monkeypatch):
    layer, inputs = nn.Linear(5, 3), torch.randn(4, 6, 5)
    node, pairs = layer_node(torch.ops.aten.linear.default), [(inputs[:2], inputs[2:])]
    whole = input_moments(node, layer.weight.shape, pairs, 1, seed=0)
    pieces, take = [], InputColumns.take
    monkeypatch.setattr(InputColumns, "take", lambda *given: pieces.append(len(given[1])) or take(*given))
    monkeypatch.setattr(input_columns, "PIECE", 25)  # five columns
    in_pieces = input_moments(node, layer.weight.shape, pairs, 1, seed=0)
    assert pieces == [5, 5, 5, 5, 2, 2]  # of both networks
    about = inputs[2:].flatten(0, 1) - inputs[2:].mean((0, 1))
    for moments in (whole, in_pieces):
        assert moments.count == 12
        torch.testing.assert_close(moments.spread[0], (about.T @ about / 12).double(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(moments.mean_float[0], inputs[:2].double().mean((0, 1)))
