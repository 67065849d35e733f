"""Networks that turn autocast on themselves are captured and compared in float32."""

import copy
import threading

import pytest
import torch
from torch import nn

from qgait_ptq.capture.autocast import WithoutAutocast, autocast_disabled, disabled_regions
from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.placement.planning import plan
from tests.conftest import randomise_batch_norms
from tests.small_network import Small, quantize


class Autocast(Small):
    def forward(self, silhouettes):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = self.features(silhouettes)
            with torch.autocast("cpu", enabled=False):
                return self.fc(features.float())


class Decorated(Small):
    """The decorator enters the same region in every call, and the head asks for the type of its input."""

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, silhouettes):
        features = self.features(silhouettes)
        return self.fc(features + torch.ones(1).to(features.dtype)).float()


class HalfEmbedding(Small):
    def forward(self, silhouettes):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc(self.features(silhouettes))


@pytest.mark.parametrize("make", [Autocast, Decorated, HalfEmbedding])
def test_the_graph_computes_in_float32_what_the_network_does_without_autocast(make):
    network = randomise_batch_norms(make())
    captured, graph_module, layers = plan(network, (32, 22), QuantConfig())
    assert [layer.name for layer in layers] == ["conv", "fc"]
    assert (captured.batch, captured.frames) == (None, None)
    (place,) = captured.without_autocast
    # A decorator enters its region before the code of the network is reached.
    assert place.startswith("a decorator" if make is Decorated else f"{__file__}:")
    silhouettes = captured.example(3, 19)
    given = graph_module(silhouettes)
    assert given.dtype == torch.float32
    with autocast_disabled():
        torch.testing.assert_close(given, network(silhouettes))
    assert not torch.equal(given, network(silhouettes).float())  # in half precision


def test_the_user_is_told_which_regions_have_no_effect():
    result, notes = quantize(randomise_batch_norms(Autocast()))
    assert [layer.name for layer in result.report.layers] == ["conv", "fc"]
    assert result.report.parity.cosine_min > 0.9999
    (note,) = [note for note in notes if "autocast" in note]
    assert f"{__file__}:" in note
    assert "float32" in note


def test_a_network_without_enabled_regions_is_captured_as_it_is():
    captured = capture(randomise_batch_norms(Small()), (32, 22))
    assert captured.without_autocast == ()
    assert "fc.weight" in dict(captured.graph_module.named_parameters())


def test_autocast_works_again_afterwards_and_in_other_threads_all_the_time():
    layer, features = nn.Linear(4, 4), torch.rand(2, 4)
    types = []

    def work():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            types.append(layer(features).dtype)

    region = torch.autocast("cpu", dtype=torch.bfloat16)
    with autocast_disabled() as outer:
        with autocast_disabled() as inner, region:
            assert layer(features).dtype == torch.float32
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        with region:
            assert layer(features).dtype == torch.float32
    assert (len(inner), len(outer)) == (1, 1)
    with region:
        assert layer(features).dtype == torch.bfloat16
    work()
    assert types == [torch.bfloat16, torch.bfloat16]


def test_a_copy_of_a_network_remembers_its_regions():
    network = WithoutAutocast(randomise_batch_norms(Autocast()))
    network(torch.rand(1, 4, 32, 22))
    assert disabled_regions(copy.deepcopy(network)) == disabled_regions(network) != ()
