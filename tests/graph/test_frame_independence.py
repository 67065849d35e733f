"""A network is streamed only where each operator before the maximum is proven to treat each frame alone."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.gait.zoo import DeepGaitV2P3D, GaitPart, SwinGait
from qgait_ptq.graph.frame_independence import PROOF_FRAMES, prove_frame_independence
from qgait_ptq.graph.frame_rules import RULES
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.graph.operators import LEAKY_RECTIFIERS
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.planning import plan
from tests.conftest import SHALLOW, make_gaitbase, make_gaitgl, make_gaitset, randomise_batch_norms

CHANNELS = 8


class Over(nn.Module):
    """A convolution on each frame, and a function from frames ``[n, s, c, h, w]`` to ``[n, c]``."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, CHANNELS, 3, 2, 1), nn.Linear(CHANNELS, 6)
        self.function = function
        generator = torch.Generator().manual_seed(0)
        for name, shape in {
            "square": (CHANNELS, CHANNELS),
            "temporal": (CHANNELS, CHANNELS, 3, 1, 1),
            "pointwise": (CHANNELS, CHANNELS, 1, 1, 1),
            "table": (5, CHANNELS),
            "positions": (1, 40, 1, 1, 1),
        }.items():
            self.register_buffer(name, torch.randn(shape, generator=generator))

    def forward(self, silhouettes):
        maps = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        return self.head(self.function(self, maps.unflatten(0, (silhouettes.shape[0], -1))))


def pooled(x):
    """Maximum over frames and places."""
    return x.amax((1, 3, 4))


def batches(x):
    """Frames as batches ``[n·s, c, h, w]``."""
    return x.flatten(0, 1)


def sequences(x, like):
    return x.unflatten(0, (like.shape[0], -1))


def tokens(x):
    """Each place as a row: the frames are the outer part of the first axis."""
    return x.permute(0, 1, 3, 4, 2).reshape(-1, CHANNELS)


def from_tokens(rows, like):
    n, s, c, h, w = like.shape
    return rows.reshape(n, s, h, w, c).permute(0, 1, 4, 2, 3)


ALONE = {
    "the maximum at once": lambda net, x: pooled(x),
    "elementwise": lambda net, x: pooled(functional.gelu(x) * torch.sigmoid(x) + x.clamp(0, 1) / 2),
    "a mask of two tensors": lambda net, x: pooled(torch.where(x > 0.1, x, -x)),
    "reshape and back": lambda net, x: pooled(sequences(batches(x) * 2, x)),
    "permutations": lambda net, x: x.permute(3, 0, 2, 1, 4).amax((0, 3, 4)),
    "rows of places": lambda net, x: pooled(from_tokens(tokens(x) @ net.square, x)),
    "linear over channels": lambda net, x: functional.linear(x.mean((3, 4)), net.square).amax(1),
    "softmax over places": lambda net, x: pooled(x * x.softmax(-1)),
    "cumulative sums over places": lambda net, x: pooled(x.cumsum(-1)),
    "layer norm": lambda net, x: pooled(functional.layer_norm(x, x.shape[2:])),
    "group norm": lambda net, x: pooled(sequences(functional.group_norm(batches(x), 2), x)),
    "a slice of places": lambda net, x: pooled(x[:, :, :, 1:3]),
    "chosen channels": lambda net, x: pooled(x[:, :, [1, 0, 2, 3, 7, 6, 5, 4]]),
    "flipped places": lambda net, x: pooled(x + x.flip(-1) + x.roll(1, 3)),
    "padded places": lambda net, x: pooled(functional.pad(x, (1, 0, 0, 2))),
    "pooling of places": lambda net, x: pooled(sequences(functional.avg_pool2d(batches(x), 2), x)),
    "a 1×1×1 convolution": lambda net, x: functional.conv3d(x.transpose(1, 2), net.pointwise).amax((2, 3, 4)),
    "pooling with kernel 1 over frames": lambda net, x: functional.max_pool3d(
        x.transpose(1, 2), (1, 2, 2)
    ).amax((2, 3, 4)),
    "concatenated channels": lambda net, x: pooled(torch.cat((x, x * 2), 2)[:, :, ::2]),
    "products of batches": lambda net, x: pooled(x @ x.transpose(3, 4)),
    "attention within frames": lambda net, x: functional.scaled_dot_product_attention(x, x, x).amax(
        (1, 3, 4)
    ),
    "an Einstein sum": lambda net, x: torch.einsum("nschw,cd->nsdhw", x, net.square).amax((1, 3, 4)),
    "a tensor for each frame": lambda net, x: (
        x.mean((3, 4)) + net.square[0].expand(x.shape[0], x.shape[1], CHANNELS)
    ).amax(1),
    "a norm of each frame": lambda net, x: functional.normalize(x.mean((3, 4)), dim=2).amax(1),
    "the same frames twice": lambda net, x: pooled(x) + (x * 2).amax((1, 3, 4)),
}
TOGETHER = {
    "mean": (lambda net, x: x.mean((1, 3, 4)), "mean behind conv combines frames"),
    "mean of batches": (lambda net, x: pooled(x) + batches(x).mean((0, 2, 3)), "mean .* combines frames"),
    "softmax": (lambda net, x: pooled(x * x.softmax(1)), "softmax behind conv combines frames"),
    "cumulative sums": (lambda net, x: pooled(x.cumsum(1)), "cumsum behind conv combines frames"),
    "differences": (lambda net, x: pooled(x[:, 1:] - x[:, :-1]), "slice behind conv looks at single frames"),
    "first frames": (lambda net, x: pooled(x[:, :20]), "slice .* looks at single frames"),
    "every other frame": (lambda net, x: pooled(x[:, ::2]), "slice .* looks at single frames"),
    "the first frame": (lambda net, x: pooled(x) + x[:, 0].amax((2, 3)), "select .* looks at single frames"),
    "chosen frames": (lambda net, x: pooled(x[:, [0, 2]]), "index .* looks at single frames"),
    "reversed": (lambda net, x: pooled(x - x.flip(1) / 2), "flip .* moves frames"),
    "shifted": (lambda net, x: pooled(x - x.roll(1, 1) / 2), "roll .* moves frames"),
    "padded": (
        lambda net, x: pooled(functional.pad(x, (0, 0, 0, 0, 0, 0, 1, -1)) + x),
        "pad .* combines frames",
    ),
    "a 3×1×1 convolution": (
        lambda net, x: functional.conv3d(x.transpose(1, 2), net.temporal, padding=(1, 0, 0)).amax((2, 3, 4)),
        "conv3d temporal combines frames",
    ),
    "pooled frames": (
        lambda net, x: functional.max_pool3d(x.transpose(1, 2), (3, 1, 1), 1, (1, 0, 0)).amax((2, 3, 4)),
        "max_pool3d .* combines frames",
    ),
    "softmax over moved frames": (
        lambda net, x: pooled(x) + x.mean((3, 4)).transpose(1, 2).softmax(2).amax(2),
        "softmax .* combines frames",
    ),
    "products of frames": (
        lambda net, x: pooled(x) + (x.flatten(2) @ x.flatten(2).transpose(1, 2)).amax((1, 2))[:, None],
        "matmul .* combines frames",
    ),
    "attention of frames": (
        lambda net, x: functional.scaled_dot_product_attention(*[x.mean((3, 4))[:, None]] * 3).amax((1, 2)),
        "combines frames",
    ),
    "an Einstein sum": (
        lambda net, x: torch.einsum("nschw,nthw->nsc", x, x.amax(2)).amax(1),
        "combines frames",
    ),
    "mixed by a reshape": (
        lambda net, x: pooled(x.transpose(1, 2).reshape(x.shape) + x),
        "(reshape|view|clone) .* combines frames",
    ),
    "divided by the frame count": (
        lambda net, x: pooled(x / x.shape[1]),
        "div behind conv computes with the number of frames",
    ),
    "divided behind the maximum": (
        lambda net, x: pooled(x) / x.shape[1],
        "div behind conv computes with the number of frames",
    ),
    "a rare count": (
        lambda net, x: pooled(x) * (1 + x.shape[1] // 100),
        "mul behind conv computes with the number of frames",
    ),
    "positions": (
        lambda net, x: pooled(x * torch.arange(x.shape[1])[:, None, None, None]),
        "arange .* computes with the number of frames",
    ),
    "a table of positions": (
        lambda net, x: pooled(x + net.positions[:, : x.shape[1]]),
        "slice .* computes with the number of frames",
    ),
    "a maximum and its frames": (
        lambda net, x: pooled(x - x.amax(1, keepdim=True)),
        "sub behind conv combines frames with their maximum",
    ),
    "sorted": (lambda net, x: pooled(x.sort(1)[0] * x), "sort .* is not known to treat each frame alone"),
}


def prove(network, frame_shape=(16, 12)):
    captured, graph_module, _ = plan(network, frame_shape, QuantConfig())
    assert captured.frames is None
    examples = [captured.example(1, count) for count in PROOF_FRAMES]
    return prove_frame_independence(insert_quantizers(graph_module), examples)


@pytest.mark.parametrize("name", ALONE)
def test_operators_that_treat_each_frame_alone_are_known(name):
    network = Over(ALONE[name]).eval()
    assert prove(network).reason == ""


@pytest.mark.parametrize("name", ALONE)
def test_what_is_proven_holds_for_chunks_of_any_lengths(name):
    network = Over(ALONE[name]).eval()
    silhouettes = random_silhouettes(1, 31, (16, 12))

    def features(chunk):
        frames = network.conv(chunk.flatten(0, 1).unsqueeze(1)).relu().unflatten(0, (1, -1))
        return network.function(network, frames)

    chunks = [features(chunk) for chunk in silhouettes.split((20, 1, 10), 1)]
    torch.testing.assert_close(torch.stack(chunks).amax(0), features(silhouettes))


@pytest.mark.parametrize("name", TOGETHER)
def test_the_operator_in_which_frames_meet_is_named(name):
    function, reason = TOGETHER[name]
    proof = prove(Over(function).eval())
    assert not proof.holds
    assert re.search(reason, proof.reason)


def test_operators_behind_the_maximum_may_do_anything():
    assert prove(Over(lambda net, x: pooled(x).softmax(1).cumsum(1).flip(1)).eval()).holds


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_gaitbase, ""),
        (make_gaitset, ""),
        (make_gaitgl, "conv3d stem combines frames"),
        pytest.param(
            lambda: SwinGait(channels=(4, 8), heads=2, blocks=2, embedding=16), "", marks=pytest.mark.slow
        ),
        pytest.param(
            lambda: GaitPart(channels=(4, 8, 8), halvings=(0, 0, 1), parts=2, embedding=16),
            "avg_pool1d behind .* combines frames",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: DeepGaitV2P3D(channels=(4, 8, 8, 16), blocks=(1, 1, 1, 1), embedding=16),
            "conv3d clips.0.temporal combines frames",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_networks_of_the_zoo_are_told_apart(make, reason):
    torch.manual_seed(0)
    proof = prove(randomise_batch_norms(make()), (64, 44))
    assert proof.holds == (not reason)
    assert re.fullmatch(reason, proof.reason)


def test_a_network_that_does_not_run_at_these_frame_counts_is_not_independent():
    captured, graph_module, _ = plan(make_gaitbase(**SHALLOW), (64, 44), QuantConfig())
    integers = [captured.example(1, count).long() for count in PROOF_FRAMES]  # convolutions refuse them
    proof = prove_frame_independence(graph_module, integers)
    assert proof.reason == "the network does not run with 7 or 17 frames"


def test_leaky_relu_has_a_rule_where_torch_does_not_mark_it_as_pointwise():
    """Torch 2.11 does not."""
    assert RULES.keys() >= LEAKY_RECTIFIERS
