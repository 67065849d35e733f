"""Networks with layers in half or double precision are captured and compared in float32."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from qgait_ptq.capture.own_copy import copy_network
from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.evaluation.accuracy import evaluate_network
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.gait.protocols import get_protocol, make_test_set
from qgait_ptq.graph.operators import aten
from qgait_ptq.placement.planning import plan
from tests.conftest import randomise_batch_norms
from tests.small_network import Small, quantize

HALF, DOUBLE = torch.float16, torch.float64


class LayerInHalf(Small):
    """One layer has weights of half precision, and the network converts around it."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Linear(8, 8).half()

    def forward(self, silhouettes):
        features = self.features(silhouettes)
        return self.fc(self.middle(features.half()).float())


class LayerInDouble(LayerInHalf):
    """Input and weight are converted where they are used, by keyword."""

    def forward(self, silhouettes):
        middle = self.middle
        features = self.features(silhouettes).to(dtype=DOUBLE)
        features = functional.linear(features, middle.weight.double(), middle.bias.to(DOUBLE))
        return self.fc(features.to(torch.float32))


class HalfAsAWhole(Small):
    """An embedding in half precision, from an input in half precision."""

    def __init__(self):
        super().__init__()
        self.half()

    def forward(self, silhouettes):
        return super().forward(silhouettes.to(HALF))


class OtherLayer(Small):
    """A norm, an activation or a recurrent layer with weights in half or double precision."""

    def __init__(self, layer, dtype):
        super().__init__()
        self.middle, self.dtype = layer.to(dtype), dtype

    def forward(self, silhouettes):
        features = self.features(silhouettes).to(self.dtype)
        if isinstance(self.middle, nn.LSTM):
            features = self.middle(features[:, None])[0][:, 0]
        else:
            features = self.middle(features[..., None])[..., 0]
        return self.fc(features.type(torch.FloatTensor))


class Attending(Small):
    """Attention in half precision, by the name of a type."""

    def forward(self, silhouettes):
        features = self.features(silhouettes).type("torch.HalfTensor")[:, None]
        return self.fc(functional.scaled_dot_product_attention(features, features, features)[:, 0].float())


class WeightsConverted(Small):
    """Recurrent layers whose weights are converted beside their input, so that nothing fails."""

    def __init__(self, as_list):
        super().__init__()
        self.cell, self.lstm, self.as_list = nn.GRUCell(8, 8), nn.LSTM(8, 8, batch_first=True), as_list

    def forward(self, silhouettes):
        features = self.features(silhouettes).half()
        if self.as_list:
            states = [torch.zeros_like(features)[None]] * 2
            weights = [weight.half() for weight in self.lstm.parameters()]
            settings = (True, 1, 0.0, False, False, True)
            return self.fc(torch.lstm(features[:, None], states, weights, *settings)[0][:, 0].float())
        weights = [weight.half() for weight in self.cell.parameters()]
        return self.fc(torch.gru_cell(features, features, *weights).float())


class Rounded(Small):
    """A conversion without a layer: it rounds."""

    def forward(self, silhouettes):
        return self.fc(self.features(silhouettes).half().float())


OTHER_LAYERS = [
    nn.BatchNorm1d(8),
    nn.GroupNorm(2, 8),
    nn.InstanceNorm1d(8, affine=True, track_running_stats=True),
    nn.PReLU(8),
    nn.LSTM(8, 8, batch_first=True),
]


@pytest.mark.parametrize(
    "dtype", [HALF, *(pytest.param(one, marks=pytest.mark.slow) for one in (torch.bfloat16, DOUBLE))]
)
@pytest.mark.parametrize("layer", OTHER_LAYERS, ids=lambda layer: type(layer).__name__)
def test_other_layers_with_weights_are_computed_in_float32_too(layer, dtype):
    network = OtherLayer(copy.deepcopy(layer), dtype).eval()
    captured = capture(copy_network(network), (32, 22))
    assert len(captured.without_conversions) == 1
    assert captured.graph_module(captured.example(1, 19)).dtype == torch.float32


@pytest.mark.parametrize("as_list", [False, True], ids=["gru_cell", "lstm"])
def test_recurrent_layers_with_converted_weights_are_computed_in_float32(as_list):
    network = WeightsConverted(as_list).eval()
    assert len(capture(copy_network(network), (32, 22)).without_conversions) == 2


def test_attention_in_half_precision_is_computed_in_float32():
    assert len(capture(copy_network(Attending().eval()), (32, 22)).without_conversions) == 1


@pytest.mark.parametrize("make", [LayerInHalf, LayerInDouble, HalfAsAWhole])
def test_layers_in_other_types_are_layers_in_float32(make):
    network = randomise_batch_norms(make())
    captured, graph, layers = plan(network, (32, 22), QuantConfig())
    assert all(place.startswith(f"{__file__}:") for place in captured.without_conversions)
    assert len(captured.without_conversions) == (2 if make is LayerInDouble else 1)
    assert all(layer.integer for layer in layers)
    assert not any(node.target is aten.to.dtype for node in graph.graph.nodes)
    silhouettes = captured.example(3, 19)
    given, expected = graph(silhouettes), network(silhouettes).float()
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_a_conversion_that_only_rounds_stays():
    captured = capture(copy_network(randomise_batch_norms(Rounded())), (32, 22))
    assert captured.without_conversions == ()
    conversions = [n for n in captured.graph_module.graph.nodes if n.target is aten.to.dtype]
    assert [node.args[1] for node in conversions] == [HALF, torch.float32]


def test_the_user_is_told_which_conversions_have_no_effect():
    result, notes = quantize(randomise_batch_norms(LayerInHalf()))
    assert [layer.name for layer in result.report.layers] == ["conv", "middle", "fc"]
    (note,) = [note for note in notes if "float32" in note]
    assert note.startswith(f"conversions to half or double precision have no effect at {__file__}:")


def test_the_accuracy_of_a_network_in_half_precision_is_that_in_float32(walkers):
    network = randomise_batch_norms(HalfAsAWhole())
    data = GaitData(walkers, walkers, make_test_set(walkers, get_protocol("casia-b")))
    accuracy = evaluate_network(network, data, "cpu")
    assert accuracy == evaluate_network(copy_network(network), data, "cpu")
