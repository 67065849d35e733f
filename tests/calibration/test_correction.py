"""Correction layer by layer, on real convolutions and a real network."""

import copy

import pytest
import torch
from torch import nn

from qgait_ptq.calibration.correction import CorrectionSettings, Rounding, correct_layers
from qgait_ptq.errors import CalibrationError
from qgait_ptq.gait.metrics import embedding_sqnr
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_of
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from qgait_ptq.quantizer.grid import INT32_MAX, quantize
from tests.conftest import make_gaitbase
from tests.networks import quantize_network

W4A4 = {"weight_bits": 4, "activation_bits": 4, "weight_observer": "minmax"}


@pytest.fixture(scope="module")
def calibrated(batches):
    return quantize_network(make_gaitbase(), batches, **W4A4)


def corrected(calibrated, batches, **settings):
    graph, reference = copy.deepcopy(calibrated.graph), copy.deepcopy(calibrated.graph)
    set_quantizing(reference, False)
    correct_layers(reference, graph, clips(batches), CorrectionSettings(**settings))
    return graph


def clips(batches):
    return [torch.cat([batch[:, :12] for batch in batches[start : start + 3]]) for start in (0, 3, 6)]


def sqnr(graph, calibrated, batches):
    with torch.inference_mode():
        pairs = [(calibrated.float_graph(b), graph(b)) for b in batches]
    return embedding_sqnr(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))


def test_each_kind_of_correction_brings_the_embedding_closer(calibrated, batches):
    plain = sqnr(calibrated.graph, calibrated, batches)
    bias_only = sqnr(corrected(calibrated, batches, rounding=Rounding.NEAREST), calibrated, batches)
    qronos = sqnr(corrected(calibrated, batches), calibrated, batches)
    gptq = sqnr(corrected(calibrated, batches, rounding=Rounding.GPTQ), calibrated, batches)
    assert plain + 1 < bias_only < qronos
    assert plain + 1 < gptq


def integers_of(graph):
    found = []
    for layer in quantized_layers(graph):
        quantizer = layer.weight_quantizer
        found.append(
            quantize(weight_of(graph, layer), quantizer.scale, quantizer.zero_point, quantizer.grid, 0)
        )
    return found


def test_rounded_weights_lie_on_their_grids_and_fitting_again_keeps_their_integers(calibrated, batches):
    graph = corrected(calibrated, batches)
    for layer in quantized_layers(graph):
        weight = weight_of(graph, layer)
        torch.testing.assert_close(layer.weight_quantizer(weight), weight, rtol=1e-6, atol=0)
    before = integers_of(graph)
    reference = copy.deepcopy(calibrated.graph)
    set_quantizing(reference, False)
    correct_layers(reference, graph, clips(batches), CorrectionSettings(Rounding.KEPT))
    assert all(torch.equal(old, new) for old, new in zip(before, integers_of(graph), strict=True))


def test_the_same_seed_gives_the_same_weights_and_disk_makes_no_difference(calibrated, batches):
    first, second = corrected(calibrated, batches), corrected(calibrated, batches, memory=0)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.last = nn.Linear(4, 5)

    def forward(self, silhouettes):
        frames = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        frames = self.shared(self.shared(frames).relu()).amax((2, 3))
        return self.last(frames.unflatten(0, silhouettes.shape[:2]).amax(1))


def test_shared_weights_are_left_alone_and_named(batches):
    torch.manual_seed(0)
    calibrated = quantize_network(Shared().eval(), batches, **W4A4)
    graph, reference = copy.deepcopy(calibrated.graph), copy.deepcopy(calibrated.graph)
    set_quantizing(reference, False)
    done = correct_layers(reference, graph, clips(batches), CorrectionSettings())
    assert done.left_alone == ["shared", "shared"]
    torch.testing.assert_close(graph.shared.weight, calibrated.graph.shared.weight)


def test_values_that_are_not_finite_are_refused_with_a_layer(calibrated, batches):
    broken = [batch.clone() for batch in clips(batches)]
    broken[1][0, 0, 0, 0] = float("nan")
    graph = copy.deepcopy(calibrated.graph)
    with pytest.raises(CalibrationError, match=r"layer \S+: its inputs contain NaN"):
        correct_layers(copy.deepcopy(graph), graph, broken, CorrectionSettings())


class LargeBiases(nn.Module):
    """A layer whose weights are tiny beside its biases, as batch norms of dead channels leave them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.dead = nn.Conv2d(1, 8, 5, 4, 2), nn.Conv2d(8, 16, 1)
        self.next, self.fc = nn.Conv2d(16, 8, 1), nn.Linear(8, 16)
        with torch.no_grad():
            self.dead.weight.mul_(1e-6 * torch.logspace(-1, 1, 16)[:, None, None, None])
            self.dead.bias.fill_(1.0)

    def forward(self, silhouettes):
        maps = self.dead(self.stem(silhouettes.flatten(0, 1).unsqueeze(1)).relu()).relu()
        maps = self.next(maps).relu().amax((2, 3))
        return self.fc(maps.unflatten(0, (silhouettes.shape[0], -1)).amax(1))


def test_biases_leave_half_of_int32_to_the_sums_after_rounding_too(batches):
    quantized = quantize_network(LargeBiases().eval(), batches)
    graph, reference = quantized.graph, copy.deepcopy(quantized.graph)
    set_quantizing(reference, False)
    correct_layers(reference, graph, batches[:4], CorrectionSettings())
    layer = quantized_layers(graph)[1]
    scale = layer.input_quantizer(graph).scale * layer.weight_quantizer.scale
    bias = tensor_of(graph, layer.bias_parameter)
    assert 0.4 < float((bias.abs() / scale).max()) / INT32_MAX < 0.51
