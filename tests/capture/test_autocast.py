"""Networks that turn autocast on themselves are captured and compared in float32."""

import copy
import io
import threading
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import qgait_ptq as qg
from qgait_ptq.capture.autocast import UNKNOWN_PLACE, WithoutAutocast, autocast_disabled, disabled_regions
from qgait_ptq.capture.exported_program import load_exported_program
from qgait_ptq.capture.own_copy import copy_network
from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.evaluation.accuracy import evaluate_network
from qgait_ptq.gait.protocols import get_protocol, make_test_set
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


class OutsideOfIt(Small):
    """The type is checked outside of the region, where torch.export writes the conversion to float32."""

    def forward(self, silhouettes):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embedding = self.fc(self.features(silhouettes))
        return embedding.float() * 2


def saved_and_loaded(network, strict):
    """Return the network as a program in a file, as `load_model` gives it."""
    free = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    program = torch.export.export(network, (torch.rand(2, 7, 32, 22),), dynamic_shapes=free, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    return load_exported_program(Path("model.pt2"), file.getvalue(), trust_code=True)


@pytest.mark.parametrize(
    ("make", "strict"),
    [
        (Autocast, True),
        (Decorated, False),
        (HalfEmbedding, False),
        (OutsideOfIt, False),
        pytest.param(Autocast, False, marks=pytest.mark.slow),
        pytest.param(Decorated, True, marks=pytest.mark.slow),
        pytest.param(HalfEmbedding, True, marks=pytest.mark.slow),
        pytest.param(OutsideOfIt, True, marks=pytest.mark.slow),
    ],
)
def test_an_exported_program_with_a_region_computes_in_float32(make, strict):
    network = randomise_batch_norms(make())
    program = saved_and_loaded(network, strict)
    captured, graph_module, layers = plan(program, (32, 22), QuantConfig())
    assert [layer.name for layer in layers] == ["conv", "fc"]
    assert captured.without_autocast == (UNKNOWN_PLACE,)
    silhouettes = captured.example(3, 19)
    with autocast_disabled():
        torch.testing.assert_close(graph_module(silhouettes), network(silhouettes))
    assert not any("bfloat16" in str(node.args) for node in graph_module.graph.nodes)


def test_the_program_of_the_user_is_left_as_it_is():
    program = saved_and_loaded(randomise_batch_norms(Autocast()), strict=False)
    before = [str(one.graph) for one in program.modules() if isinstance(one, fx.GraphModule)]
    copy_network(program)
    assert before == [str(one.graph) for one in program.modules() if isinstance(one, fx.GraphModule)]


def test_the_accuracy_of_a_program_with_a_region_is_measured(walkers):
    network = randomise_batch_norms(Autocast())
    test_set = make_test_set(walkers, get_protocol("casia-b"))
    data = qg.GaitData(walkers, walkers, test_set)
    accuracy = evaluate_network(saved_and_loaded(network, strict=False), data, "cpu")
    assert accuracy == evaluate_network(network, data, "cpu")


def test_a_conversion_of_a_program_without_regions_stays():
    class Rounded(Small):
        def forward(self, silhouettes):
            return self.fc(self.features(silhouettes).to(torch.bfloat16).float())

    network = randomise_batch_norms(Rounded())
    copied = copy_network(saved_and_loaded(network, strict=False))
    silhouettes = torch.rand(2, 5, 32, 22)
    torch.testing.assert_close(copied(silhouettes), network(silhouettes))


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
