"""Channel groups, and that scaling them changes nothing."""

import pytest
import torch
from torch import nn

from qgait_ptq.calibration.equalization import Equalization, equalize
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import CalibrationError
from qgait_ptq.graph.attributes import set_parameter, tensor_of
from qgait_ptq.graph.channels import find_channel_groups
from qgait_ptq.graph.stored_weights import layer_name
from qgait_ptq.graph.views import WeightedLayer
from qgait_ptq.placement.planning import plan
from tests.conftest import DEEP, make_gaitbase, make_gaitset


def float_graph(network):
    return plan(network, (64, 44), QuantConfig())[1]


def names(group):
    return {layer_name(n) for n in group.writers}, {layer_name(n) for n in group.readers}


def test_residual_streams_are_one_group_and_layers_within_a_block_another():
    found = [names(group) for group in find_channel_groups(float_graph(make_gaitbase(**DEEP)))]
    assert ({"blocks.1.conv1"}, {"blocks.1.conv2"}) in found
    into_block = [readers for _, readers in found if "blocks.2.conv1" in readers]
    assert len(into_block) == 1
    written = next(writers for writers, readers in found if "blocks.2.conv1" in readers)
    assert "blocks.1.conv2" in written  # the addition ties all that write to the stream
    assert len(written) >= 2
    assert not any("part_linear" in name for _, readers in found for name in readers)


def test_the_branches_of_a_set_network_are_followed_through_the_maximum_over_frames():
    found = [names(group) for group in find_channel_groups(float_graph(make_gaitset()))]
    assert any({"frame2.0", "set1.0"} <= readers for _, readers in found)


def within_block(graph):
    """The group of the channels between the two convolutions of a residual block."""
    wanted = ({"blocks.1.conv1"}, {"blocks.1.conv2"})
    return next(group for group in find_channel_groups(graph) if names(group) == wanted)


class Awkward(nn.Module):
    """A shared convolution, a sigmoid gate and a grouped convolution: none may be scaled."""

    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.gated, self.grouped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
        self.last = nn.Conv2d(4, 6, 1)

    def forward(self, silhouettes):
        frames = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        frames = self.shared(self.shared(frames).relu()).relu()
        frames = self.gated(frames)
        frames = self.grouped(frames * frames.sigmoid())
        frames = self.last(frames).amax((2, 3))
        return frames.unflatten(0, silhouettes.shape[:2]).amax(1)


def test_what_does_not_commute_with_a_factor_is_left_alone():
    assert find_channel_groups(float_graph(Awkward())) == []


@pytest.mark.parametrize("make", [make_gaitbase, make_gaitset])
@pytest.mark.parametrize("kind", [Equalization.WEIGHTS, Equalization.ACTIVATIONS])
def test_the_network_stays_the_same_function(make, kind, batches):
    graph = float_graph(make())
    with torch.inference_mode():
        before = torch.cat([graph(batch) for batch in batches])
    assert equalize(graph, batches[:3], kind).groups > 0
    with torch.inference_mode():
        after = torch.cat([graph(batch) for batch in batches])
    torch.testing.assert_close(after, before, atol=1e-4 * float(before.abs().max()), rtol=0)


def test_weights_of_both_sides_have_equal_ranges_afterwards(batches):
    graph = float_graph(make_gaitbase(**DEEP))
    equalize(graph, batches[:1], Equalization.WEIGHTS)
    group = next(
        g for g in find_channel_groups(graph) if names(g) == ({"blocks.1.conv1"}, {"blocks.1.conv2"})
    )
    written = tensor_of(graph, group.writers[0].args[1]).abs().flatten(1).amax(1)
    read = tensor_of(graph, group.readers[0].args[1]).abs().transpose(0, 1).flatten(1).amax(1)
    ratio = written / read
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=0.05, atol=0)


def test_channels_have_equal_energy_after_equalizing_activations(batches):
    graph = float_graph(make_gaitbase(**DEEP))
    group = next(
        g for g in find_channel_groups(graph) if names(g) == ({"blocks.1.conv1"}, {"blocks.1.conv2"})
    )

    def energies():
        values = {}
        interpreter = torch.fx.Interpreter(graph, garbage_collect_values=False)
        interpreter.run(batches[0])
        values = interpreter.env[group.readers[0].args[0]]
        return values.square().mean((0, 2, 3)).sqrt()

    before = energies()
    equalize(graph, batches[:1], Equalization.ACTIVATIONS, strength=1.0)
    after = energies()
    alive = before > 0.01 * before.mean()
    assert after[alive].std() / after[alive].mean() < 0.05 < before[alive].std() / before[alive].mean()


def test_a_network_that_changes_is_refused(batches, monkeypatch):
    graph = float_graph(make_gaitbase(**DEEP))
    monkeypatch.setattr("qgait_ptq.calibration.equalization.TOLERANCE", 0.0)
    with pytest.raises(CalibrationError, match="equalization: none"):
        equalize(graph, batches[:1], Equalization.ACTIVATIONS)


def test_a_channel_that_nobody_reads_leaves_the_factors_of_the_others_alone():
    def factors(*, unread):
        graph = float_graph(make_gaitbase(**DEEP))
        group = within_block(graph)
        (reader,) = map(WeightedLayer, group.readers)
        weight = tensor_of(graph, reader.weight).clone()
        weight[:, unread] = 0
        set_parameter(graph, reader.weight, weight)
        return equalize(graph, [torch.rand(1, 3, 64, 44).round()], Equalization.WEIGHTS).factors[
            group.writers[0].name
        ]

    some, others = factors(unread=[]), factors(unread=[3])
    assert float(others[3]) == 1
    assert int((others == 1).sum()) == 1
    kept = [index for index in range(len(some)) if index != 3]
    ratio = others[kept] / some[kept]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


class BetweenConvolutions(nn.Module):
    """A convolution, something on maps ``[n·s, 4, 4, 4]``, and a convolution."""

    def __init__(self, inner):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.before, self.after = inner, nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3)

    def forward(self, silhouettes):
        frames = self.inner(self.before(silhouettes.flatten(0, 1).unsqueeze(1)).relu())
        return self.after(frames).amax((2, 3)).unflatten(0, silhouettes.shape[:2]).amax(1)


@pytest.mark.parametrize(
    ("inner", "groups"),
    [
        (nn.MaxPool3d((3, 1, 1), 1, (1, 0, 0)), 0),  # over channels: maps without a batch axis
        (lambda maps: nn.functional.max_pool3d(maps[:, None], (1, 3, 1), 1, (0, 1, 0))[:, 0], 0),
        (lambda maps: nn.functional.max_pool2d(maps.transpose(1, 2), (3, 1), 1, (1, 0)).transpose(1, 2), 0),
        (lambda maps: maps.amax(1, keepdim=True).expand(-1, 4, -1, -1), 0),
        (lambda maps: maps.transpose(1, 2) + maps, 0),
        (lambda maps: maps + maps.transpose(1, 2), 0),
        (lambda maps: maps.transpose(2, 3) + maps, 1),
        (nn.MaxPool2d(3, 1, 1), 1),
    ],
)
def test_factors_stay_away_from_operators_that_mix_channels(inner, groups):
    """Channels, height and width are equal, so that sizes say nothing."""
    graph = plan(BetweenConvolutions(inner).eval(), (4, 4), QuantConfig())[1]
    with torch.no_grad():
        tensor_of(graph, next(n for n in graph.graph.nodes if "before" in str(n.target)))[1].mul_(20)
    silhouettes = (torch.rand(2, 5, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    before = graph(silhouettes)
    assert equalize(graph, [silhouettes], Equalization.WEIGHTS).groups == groups
    torch.testing.assert_close(graph(silhouettes), before, atol=1e-5 * float(before.abs().max()), rtol=1e-5)
