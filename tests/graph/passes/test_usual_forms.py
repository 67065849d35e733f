"""Ways of writing a network that end in the same graph: the same layers on integers, the same function."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qgait_ptq.capture.trace import capture
from qgait_ptq.graph.channels import find_channel_groups
from qgait_ptq.graph.macs import count_macs
from qgait_ptq.graph.operators import BATCH_NORMS, CONVOLUTIONS, RECTIFIERS, aten, is_operator
from qgait_ptq.graph.passes import SIMPLIFICATION
from qgait_ptq.graph.passes.graph_pass import run_passes
from qgait_ptq.graph.views import argument
from qgait_ptq.placement.layers import outputs_of
from tests.conftest import randomise_batch_norms

CHANNELS = 8


class Frames(nn.Module):
    """A convolution on each frame, then `body` with its modules, then a mean over pixels and a maximum."""

    def __init__(self, body, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.body = nn.Conv2d(1, CHANNELS, 3, 2, 1), body
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, silhouettes):
        n, s, h, w = silhouettes.shape
        maps = self.first(silhouettes.reshape(n * s, 1, h, w)).relu()
        features = self.body(self, maps)
        return features.reshape(n, s, features.shape[1], -1).mean(3).amax(1)


def simplified(network):
    captured = capture(randomise_batch_norms(network.eval()), (16, 16))
    graph = run_passes(captured.graph_module, SIMPLIFICATION, [captured.example(), captured.example(3, 7)])
    # A network that mixes the sequences of a batch is captured with one.
    size = (captured.batch or 3, 5, 16, 16)
    silhouettes = (torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    with torch.no_grad():
        torch.testing.assert_close(graph(silhouettes), network(silhouettes), rtol=1e-5, atol=1e-5)
    return graph


def count(graph, operators):
    return sum(is_operator(node, operators) for node in graph.graph.nodes)


def convolution(**settings):
    return nn.Conv2d(CHANNELS, CHANNELS, **{"kernel_size": 3, "padding": 1, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": "same"},
        {"padding": "same", "kernel_size": (4, 2)},
        {"padding": "same", "kernel_size": (2, 3), "dilation": (3, 2), "groups": 2},
        {"padding": "valid"},
    ],
)
def test_a_padding_may_be_a_word(settings):
    network = Frames(
        lambda own, maps: own.norm(own.conv(maps)).relu(),
        conv=convolution(**settings),
        norm=nn.BatchNorm2d(CHANNELS),
    )
    graph = simplified(network)
    assert count(graph, CONVOLUTIONS) == 2
    assert count(graph, BATCH_NORMS) == 0


def test_the_output_of_a_layer_is_kept_though_the_next_operator_works_in_place():
    graph = simplified(Frames(lambda own, maps: F.relu_(own.conv(maps)), conv=convolution()))
    second = [node for node in graph.graph.nodes if is_operator(node, CONVOLUTIONS)][1]
    silhouettes = (torch.rand(1, 4, 16, 16) < 0.5).float()
    assert outputs_of(graph, {second.name}, silhouettes)[second.name].min() < 0
    assert count(graph, RECTIFIERS) == 2
    assert not any(
        node.op == "call_function"
        and getattr(node.target, "_schema", None)
        and node.target._schema.is_mutable
        for node in graph.graph.nodes
    )


def test_an_addition_in_place_is_an_addition():
    def body(own, maps):
        sums = own.conv(maps)
        sums += maps
        return sums.relu_()

    graph = simplified(Frames(body, conv=convolution()))
    assert count(graph, frozenset({aten.add.Tensor})) == 1


@pytest.mark.parametrize(
    "dropout", [nn.Dropout(0.3, inplace=True), nn.Dropout2d(0.3, inplace=True), nn.AlphaDropout(0.3)]
)
def test_no_form_of_dropout_keeps_a_batch_norm_from_its_layer(dropout):
    network = Frames(
        lambda own, maps: own.norm(own.dropout(own.conv(maps))).relu(),
        conv=convolution(),
        dropout=dropout,
        norm=nn.BatchNorm2d(CHANNELS),
    )
    assert count(simplified(network), BATCH_NORMS) == 0


@pytest.mark.parametrize(
    ("body", "modules"),
    [
        (lambda own, maps: own.norm(own.conv(maps).flatten(1)), {"norm": nn.BatchNorm1d(CHANNELS * 64)}),
        (
            lambda own, maps: own.norm(own.linear(own.conv(maps).flatten(2)).flatten(1)),
            {"linear": nn.Linear(64, 3), "norm": nn.BatchNorm1d(CHANNELS * 3)},
        ),
        (
            lambda own, maps: own.norm(own.linear(own.conv(maps).flatten(2))),
            {"linear": nn.Linear(64, 1), "norm": nn.BatchNorm1d(CHANNELS)},
        ),
    ],
)
def test_a_batch_norm_with_several_channels_for_one_of_the_layer_stays(body, modules):
    assert count(simplified(Frames(body, conv=convolution(), **modules)), BATCH_NORMS) == 1


@pytest.mark.parametrize("rows", [1, 64])
def test_attention_takes_a_mask_of_each_frame(rows):
    def body(own, maps):
        tokens = maps.flatten(2).transpose(1, 2)
        mask = (tokens.mean(2) > 0.1)[:, None].expand(-1, rows, -1) | own.always
        return F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask).transpose(1, 2)

    network = Frames(body)
    network.register_buffer("always", torch.arange(64) < 1)
    simplified(network)


@pytest.mark.parametrize("equation", ["...c,cd->...d", "b...c,cd->b...d"])
def test_an_einsum_may_have_dots(equation):
    network = Frames(
        lambda own, maps: torch.einsum(equation, maps.permute(0, 2, 3, 1), own.matrix).permute(0, 3, 1, 2)
    )
    network.matrix = nn.Parameter(torch.randn(CHANNELS, 5))
    graph = simplified(network)
    assert count(graph, frozenset({aten.einsum.default})) == 0


def test_an_einsum_may_name_the_stored_tensor_first():
    network = Frames(
        lambda own, maps: torch.einsum("cd,...c->...d", own.matrix, maps.permute(0, 2, 3, 1)).permute(
            0, 3, 1, 2
        )
    )
    network.matrix = nn.Parameter(torch.randn(CHANNELS, 5))
    graph = simplified(network)
    assert count(graph, frozenset({aten.einsum.default})) == 0


def test_products_of_an_einsum_are_counted_with_dots_and_with_letters():
    counts = []
    for equation in ("...qd,...kd->...qk", "nqd,nkd->nqk"):
        network = Frames(
            lambda own, maps, form=equation: torch.einsum(form, maps.flatten(2), maps.flatten(2))
        )
        graph = simplified(network)
        einsum = next(node for node in graph.graph.nodes if node.target is aten.einsum.default)
        counts.append(count_macs(einsum))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("move", "follows"),
    [
        (lambda maps: maps.transpose(1, 2), False),
        (lambda maps: maps.permute(0, 3, 2, 1), False),
        (lambda maps: maps.permute(0, 1, 3, 2), True),
        (lambda maps: maps.transpose(2, 3), True),
        (lambda maps: maps[None].select(0, 0), True),
    ],
)
def test_channels_are_followed_by_their_axis_and_not_by_its_size(move, follows):
    """Channels, height and width are equal here, so that sizes say nothing."""
    network = Frames(lambda own, maps: own.conv(move(own.before(maps).relu())), before=convolution())
    network.conv = convolution()
    graph = simplified(network)
    readers = {
        node.name
        for group in find_channel_groups(graph)
        for node in group.readers
        if any("before" in str(writer.args[1].target) for writer in group.writers)
    }
    assert bool(readers) is follows


def trained(own, maps):
    """Put a batch norm into train mode, which updates its statistics in place."""
    return own.norm.train()(own.conv(maps))


def normalised(own, maps, *, weight=None, bias=None, training=False):
    norm = own.norm
    parameters = (norm.weight if weight is None else weight, norm.bias if bias is None else bias)
    return F.batch_norm(own.conv(maps), norm.running_mean, norm.running_var, *parameters, training)


@pytest.mark.parametrize(
    "body",
    [
        trained,
        lambda own, maps: normalised(own, maps, training=True),
        lambda own, maps: normalised(own, maps, weight=maps.mean((0, 2, 3))),
        lambda own, maps: normalised(own, maps, bias=maps.mean((0, 2, 3))),
    ],
)
def test_a_batch_norm_with_computed_values_stays(body):
    network = Frames(body, conv=convolution(), norm=nn.BatchNorm2d(CHANNELS))
    graph = simplified(network)
    assert count(graph, BATCH_NORMS) == 1
    statistics = [str(node.target) for node in graph.graph.nodes if "running" in str(node.target)]
    training = any(argument(n, "training") for n in graph.graph.nodes if is_operator(n, BATCH_NORMS))
    assert bool(statistics) is not training  # torch's exporter would write them


def test_a_batch_norm_with_a_weight_computed_from_its_parameters_is_folded():
    network = Frames(
        lambda own, maps: normalised(own, maps, weight=own.norm.weight.exp()),
        conv=convolution(),
        norm=nn.BatchNorm2d(CHANNELS),
    )
    assert count(simplified(network), BATCH_NORMS) == 0


def test_an_extreme_of_all_values_names_its_axes():
    graph = simplified(Frames(lambda own, maps: maps / (maps.max() - maps.min() + 1)))
    extremes = [node for node in graph.graph.nodes if node.target in (aten.amax.default, aten.amin.default)]
    assert [list(argument(node, "dim")) for node in extremes[:2]] == [[0, 1, 2, 3]] * 2
    assert count(graph, frozenset({aten.max.default, aten.min.default})) == 0


def test_the_functional_form_takes_inputs_of_any_strides():
    def body(own, maps):
        mask = torch.zeros_like(maps)
        mask[:, :2] = 1
        return maps * mask

    graph = simplified(Frames(body))
    silhouettes = torch.rand(6, 9, 16, 16)[:2, :5]  # as where a file is compared at several sizes
    assert graph(silhouettes).shape == graph(silhouettes.contiguous()).shape


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2, divisor_override=3),
        nn.AvgPool2d((3, 2), (2, 1), (1, 0), count_include_pad=False, divisor_override=1),
    ],
)
def test_a_pooling_with_a_divisor_of_its_own_is_a_mean_and_a_product(pool):
    graph = simplified(Frames(lambda own, maps: own.pool(maps), pool=pool))
    (mean,) = (node for node in graph.graph.nodes if is_operator(node, frozenset({aten.avg_pool2d.default})))
    assert argument(mean, "divisor_override") is None
    assert argument(mean, "count_include_pad")


def test_a_pooling_over_frames_with_a_divisor_of_its_own_is_a_mean_and_a_product():
    def body(own, maps):
        return own.pool(maps.unsqueeze(2)).squeeze(2)

    graph = simplified(Frames(body, pool=nn.AvgPool3d((1, 2, 2), divisor_override=7)))
    (mean,) = (node for node in graph.graph.nodes if is_operator(node, frozenset({aten.avg_pool3d.default})))
    assert argument(mean, "divisor_override") is None


def test_a_divisor_is_kept_where_windows_are_cut_off():
    pool = nn.AvgPool2d(3, ceil_mode=True, divisor_override=4)
    graph = simplified(Frames(lambda own, maps: own.pool(maps), pool=pool))
    (mean,) = (node for node in graph.graph.nodes if is_operator(node, frozenset({aten.avg_pool2d.default})))
    assert argument(mean, "divisor_override") == 4
