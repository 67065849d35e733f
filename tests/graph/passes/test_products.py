"""Products in every spelling: their multiply-accumulates are counted, and stored weights become layers."""

import pytest
import torch
from torch import nn

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.graph.macs import count_macs
from qgait_ptq.graph.operators import CONVOLUTIONS, WEIGHTED, aten, is_operator
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.placement.planning import plan
from qgait_ptq.placement.totals import count_totals
from tests.graph.passes.test_usual_forms import CHANNELS, Frames, count, simplified

PLACES, FRAMES = 64, 2 * 7  # of the maps of 8 × 8, and of the example
TOKENS = FRAMES * PLACES


def tokens(maps):
    """Return the channels of each place, ``[n·s, 64, 8]``."""
    return maps.flatten(2).transpose(1, 2)


def rows(maps):
    """Return the mean channels of each frame, ``[n·s, 8]``."""
    return maps.mean((2, 3))


def scores(maps):
    return tokens(maps) @ tokens(maps).transpose(1, 2)


def with_places(vectors):
    return vectors[:, :, None, None]


# Name → body, and multiply-accumulates of the products.
LAYERS = {
    "tensordot": (
        lambda own, maps: torch.tensordot(tokens(maps), own.matrix, dims=([2], [0])).transpose(1, 2),
        TOKENS * CHANNELS * 5,
    ),
    "inner": (
        lambda own, maps: torch.inner(tokens(maps), own.matrix.T).transpose(1, 2),
        TOKENS * CHANNELS * 5,
    ),
    "addmm with factors": (
        lambda own, maps: with_places(torch.addmm(own.bias, rows(maps), own.matrix, beta=0.5, alpha=2)),
        FRAMES * CHANNELS * 5,
    ),
    "addmm without its bias": (
        lambda own, maps: with_places(
            torch.addmm(own.bias * float("nan"), rows(maps), own.matrix, beta=0, alpha=3)
        ),
        FRAMES * CHANNELS * 5,
    ),
    "einsum of three tensors": (
        lambda own, maps: torch.einsum("ntc,cd,ed->net", tokens(maps), own.matrix, own.square),
        TOKENS * (CHANNELS * 5 + 5 * 5),
    ),
    "einsum of three tensors with dots, without a result": (
        lambda own, maps: torch.einsum("...t,td,de", rows(maps), own.matrix, own.square).movedim(-1, 1)[
            ..., None, None
        ],
        FRAMES * (CHANNELS * 5 + 5 * 5),
    ),
}
# Some mix the sequences of a batch, and are captured with one sequence.
IN_FLOAT = {
    "tensordot over two axes": (
        lambda own, maps: maps + torch.tensordot(own.kernel, tokens(maps), dims=([0, 2], [1, 2])).mean(),
        lambda frames: frames * PLACES * CHANNELS * 5,
    ),
    "inner of two rows": (
        lambda own, maps: maps * torch.inner(rows(maps), rows(maps)).mean(),
        lambda frames: frames * frames * CHANNELS,
    ),
    "baddbmm with factors": (
        lambda own, maps: torch.baddbmm(tokens(maps), scores(maps), tokens(maps), beta=0.5, alpha=2).mT,
        lambda frames: 2 * frames * PLACES * PLACES * CHANNELS,
    ),
    "addbmm": (
        lambda own, maps: maps + torch.addbmm(own.zeros, tokens(maps).mT, tokens(maps), beta=2).mean(),
        lambda frames: frames * PLACES * CHANNELS * CHANNELS,
    ),
    "matrix and vector": (
        lambda own, maps: maps + torch.mv(rows(maps), own.vector)[:, None, None, None],
        lambda frames: frames * CHANNELS,
    ),
    "two vectors": (
        lambda own, maps: maps + torch.dot(rows(maps).mean(0), own.vector),
        lambda frames: CHANNELS,
    ),
    "attention with a broadcast query": (
        lambda own, maps: (
            maps + nn.functional.scaled_dot_product_attention(own.query, tokens(maps), tokens(maps)).mean()
        ),
        lambda frames: frames * 3 * PLACES * 2 * CHANNELS,
    ),
    "an axis that is summed before": (
        lambda own, maps: maps + torch.einsum("ntc,c->nc", tokens(maps), own.vector)[:, :, None, None],
        lambda frames: frames * CHANNELS,
    ),
}


class Products(Frames):
    """A network with stored tensors that products and sums read."""

    def __init__(self, body):
        super().__init__(body)
        self.matrix, self.square = (nn.Parameter(torch.randn(size, 5)) for size in (CHANNELS, 5))
        self.bias, self.vector = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(CHANNELS))
        self.kernel = nn.Parameter(torch.randn(PLACES, 5, CHANNELS))
        self.query = nn.Parameter(torch.randn(1, 3, CHANNELS))
        self.register_buffer("zeros", torch.zeros(CHANNELS, CHANNELS))


def products_of(graph):
    """Return the multiply-accumulates of all nodes, without the first convolution."""
    return sum(count_macs(node) for node in graph.graph.nodes if not is_operator(node, CONVOLUTIONS))


@pytest.mark.parametrize("name", LAYERS)
def test_products_with_stored_matrices_become_layers(name):
    body, macs = LAYERS[name]
    graph = simplified(Products(body))
    layers = [node for node in graph.graph.nodes if is_operator(node, WEIGHTED)]
    assert sum(map(count_macs, layers[1:])) == products_of(graph) == macs


@pytest.mark.parametrize("name", IN_FLOAT)
def test_products_without_a_form_as_a_layer_are_counted(name):
    body, macs = IN_FLOAT[name]
    graph = simplified(Products(body))
    assert count(graph, WEIGHTED) == 1
    frames = next(observed_shape(node)[0] for node in graph.graph.nodes if is_operator(node, CONVOLUTIONS))
    assert products_of(graph) == macs(frames)


@pytest.mark.parametrize("equation", ["ntcc,cd->ntd", "ntc,cdd->ntd", "ntc,cc->ntc"])
def test_an_einsum_may_repeat_a_letter_of_one_tensor(equation):
    features, weight = equation.split("->")[0].split(",")

    def body(own, maps):
        given = tokens(maps)
        given = given[..., None].expand(-1, -1, -1, CHANNELS) if len(features) == 4 else given
        return torch.einsum(equation, given, own.weight).transpose(1, 2)

    network = Frames(body)
    network.weight = nn.Parameter(torch.randn(*[CHANNELS] * len(weight)))
    assert count(simplified(network), frozenset({aten.einsum.default})) == 1


def test_an_einsum_may_broadcast_a_summed_axis():
    network = Frames(lambda own, maps: torch.einsum("ntc,cd->ndt", tokens(maps)[:, :, :1], own.weight))
    network.weight = nn.Parameter(torch.randn(CHANNELS, 5))
    (einsum,) = (node for node in simplified(network).graph.nodes if node.target is aten.einsum.default)
    assert observed_shape(einsum) == (FRAMES, 5, PLACES)


def test_products_that_are_not_counted_are_named():
    network = Frames(lambda own, maps: maps + torch.cdist(tokens(maps), tokens(maps)).mean()).eval()
    _, graph, _ = plan(network, (16, 16), QuantConfig())
    assert count_totals(graph).notes() == ["multiply-accumulates leave out the products in cdist"]
