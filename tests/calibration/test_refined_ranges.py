"""Ranges that the error behind the reading layers refines, on real networks."""

import copy

import pytest
import torch
from torch import nn

from qgait_ptq.calibration.correction import CorrectionSettings, Rounding, correct_layers
from qgait_ptq.calibration.refined_ranges import FACTORS, LARGEST, refinable_inputs, refined_factor
from qgait_ptq.errors import CalibrationError
from qgait_ptq.graph.attributes import attribute
from qgait_ptq.graph.stepping import Stepper
from qgait_ptq.placement.quantized_layers import activation_quantizers, quantized_layers
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from tests.conftest import make_gaitbase
from tests.networks import quantize_network

W4A4 = {"weight_bits": 4, "activation_bits": 4}


def clips(batches):
    return [torch.cat([batch[:, :12] for batch in batches[start : start + 3]]) for start in (0, 3, 6)]


def both(graph):
    """Copies of a calibrated graph: the float reference, and one to change."""
    reference, changed = copy.deepcopy(graph), copy.deepcopy(graph)
    set_quantizing(reference, False)
    return reference, changed


@pytest.fixture(scope="module")
def gaitbase(batches):
    return quantize_network(make_gaitbase(), batches, **W4A4).graph


class TwoValues(nn.Module):
    """The second layer reads 1 in the silhouette, and another value in the background."""

    def __init__(self, background):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 4, 1), nn.Linear(4, 5)
        with torch.no_grad():
            self.first.weight.fill_(1 - background)
            self.first.bias.fill_(background)

    def forward(self, silhouettes):
        maps = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        maps = self.second(maps).relu().mean((2, 3))
        return self.last(maps.unflatten(0, silhouettes.shape[:2]).mean(1))


@pytest.mark.parametrize(
    ("steps", "background", "bias", "factor"),
    [
        (0.45, 0, True, 2**-0.2),  # the silhouette is rounded to 0, and to 1 if the step is smaller by 2^-0.2
        (1.0, 0, True, 1),  # exact
        (0.3, 0, True, 1),  # rounded to 0 with all factors
        (0.45, 1, True, 1),  # a constant, which the bias absorbs
        (0.45, 1, False, 2**-0.2),
    ],
)
def test_a_range_tells_values_apart_where_a_factor_can(batches, steps, background, bias, factor):
    torch.manual_seed(0)
    silhouettes = [(batch > 0.5).float() for batch in clips(batches)]
    network = TwoValues(background).eval()
    config = {"edge_bits": 8, "layers": {"second": {"weight_bits": 4, "activation_bits": 4}}}
    reference, graph = both(quantize_network(network, silhouettes, **config).graph)
    (tensor,) = refinable_inputs(graph)
    before = torch.tensor(1 / steps)
    tensor.quantizer.set_scale(before)
    settings = CorrectionSettings(bias=bias, refined_ranges=True)
    done = correct_layers(reference, graph, silhouettes, settings)
    assert done.factors == ({} if factor == 1 else {"second": factor})
    assert float(tensor.quantizer.scale) == pytest.approx(float(before) * factor)


def ridge_error(columns, weight, wanted, damping):
    """The mean squared error of the regression of ``[n, o]`` on ``[n, k]``, towards a weight ``[k, o]``."""
    count, size = columns.shape
    amount = (damping + 10 * size / count) * columns.square().mean() * count
    inputs = torch.cat([columns, amount.sqrt() * torch.eye(size, dtype=columns.dtype)])
    fitted = torch.linalg.lstsq(inputs, torch.cat([wanted, amount.sqrt() * weight])).solution
    return float((wanted - columns @ fitted).square().mean())


@pytest.mark.parametrize("corrects_bias", [True, False])
def test_the_chosen_factor_has_the_smallest_error_of_the_regression(gaitbase, batches, corrects_bias):
    reference, graph = both(gaitbase)
    tensor = refinable_inputs(graph)[0]
    (reader,) = tensor.readers
    given = [batch[:, :2] for batch in clips(batches)]  # few enough that all columns are used
    steppers = [Stepper(one, given) for one in (reference, graph)]
    for stepper in steppers:
        stepper.advance(tensor.call.name)
    values = list(zip(*(stepper.input_of(tensor.call.name) for stepper in steppers), strict=True))
    chosen = refined_factor(reference, tensor, values, len(values), 0, 0.01, corrects_bias)

    def columns_of(features):
        return nn.functional.unfold(features, 3, padding=1).movedim(1, -1).flatten(0, -2).double()

    original, before = (torch.cat(parts) for parts in zip(*values, strict=True))
    weight = attribute(reference, reader.weight_path).flatten(1).T.double()
    wanted, scale = columns_of(original) @ weight, tensor.quantizer.scale.clone()
    errors = {}
    for factor in FACTORS:
        tensor.quantizer.set_scale(scale * factor)
        inputs, aim = columns_of(tensor.quantizer(before)), wanted
        if corrects_bias:  # then a mean error does no harm
            inputs, aim = inputs - inputs.mean(0), aim - aim.mean(0)
        errors[factor] = ridge_error(inputs, weight, aim, 0.01)
    assert chosen == min(errors, key=errors.get)
    assert errors[chosen] < 0.9 * errors[1] or chosen == 1


def test_only_scales_of_refined_tensors_change_and_only_by_their_factors(gaitbase, batches):
    reference, graph = both(gaitbase)
    tensors = {tensor.readers[0].node.name: tensor.quantizer for tensor in refinable_inputs(graph)}
    before = {path: q.scale.clone() for path, q in activation_quantizers(graph).items()}
    done = correct_layers(reference, graph, clips(batches), CorrectionSettings(refined_ranges=True))
    assert done.factors
    assert set(done.factors.values()) <= set(FACTORS) - {1}
    after = activation_quantizers(graph)
    changed = {path for path, quantizer in after.items() if not torch.equal(quantizer.scale, before[path])}
    assert len(changed) == len(done.factors)
    assert {after[path] for path in changed} <= set(tensors.values())
    shares = sorted(float(after[path].scale / before[path]) for path in changed)
    assert shares == pytest.approx(sorted(done.factors.values()))


def test_without_the_setting_no_range_changes(gaitbase, batches):
    reference, graph = both(gaitbase)
    done = correct_layers(reference, graph, clips(batches), CorrectionSettings())
    assert done.factors == {}
    for path, quantizer in activation_quantizers(graph).items():
        assert torch.equal(quantizer.scale, gaitbase.get_submodule(path).scale)


def readers(graph):
    return [reader.node.name for tensor in refinable_inputs(graph) for reader in tensor.readers]


def test_tensors_with_other_readers_or_eight_bits_keep_their_range(batches, gaitbase):
    # The first layer reads the input. The shortcuts of the blocks read what their first convolutions read.
    assert readers(gaitbase)[0] == "conv2d_1"
    narrow_additions = quantize_network(make_gaitbase(), batches, **W4A4, elementwise_bits=4).graph
    assert "conv2d_1" not in readers(narrow_additions)  # the residual addition reads the same tensor
    assert readers(quantize_network(make_gaitbase(), batches).graph) == []
    everywhere = quantize_network(make_gaitbase(), batches, **W4A4, layers={"*": W4A4}).graph
    assert readers(everywhere)[0] == "conv2d_1"
    assert "conv2d" in {layer.node.name for layer in quantized_layers(everywhere)}


class Wide(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, channels, 5, 4, 2), nn.Conv2d(channels, 4, 3)
        self.last = nn.Linear(4, 5)

    def forward(self, silhouettes):
        maps = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        maps = self.second(maps).relu().amax((2, 3))
        return self.last(maps.unflatten(0, silhouettes.shape[:2]).amax(1))


@pytest.mark.parametrize(("channels", "refinable"), [(LARGEST // 9, True), (LARGEST // 9 + 1, False)])
def test_wide_layers_keep_the_range_of_their_inputs(batches, channels, refinable):
    graph = quantize_network(Wide(channels).eval(), batches, **W4A4).graph
    assert ("conv2d_1" in readers(graph)) == refinable


class Shared(nn.Module):
    """One convolution is called twice; rounding leaves its weight alone."""

    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.own, self.last = nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, silhouettes):
        maps = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        maps = self.own(self.shared(self.shared(maps).relu()).relu()).relu().amax((2, 3))
        return self.last(maps.unflatten(0, silhouettes.shape[:2]).amax(1))


def test_inputs_of_shared_weights_keep_their_range(batches):
    graph = quantize_network(Shared().eval(), batches, **W4A4).graph
    (reader,) = readers(graph)
    assert reader == [layer.node.name for layer in quantized_layers(graph)][3]  # first, shared twice, own


def test_values_that_are_not_finite_are_refused_with_a_layer(gaitbase, batches):
    broken = [batch.clone() for batch in clips(batches)]
    broken[1][0, 0, 0, 0] = float("nan")
    reference, graph = both(gaitbase)
    with pytest.raises(CalibrationError, match=r"layer \S+: its inputs contain NaN"):
        correct_layers(reference, graph, broken, CorrectionSettings(Rounding.QRONOS, refined_ranges=True))


def test_the_same_seed_chooses_the_same_ranges_and_disk_makes_no_difference(gaitbase, batches):
    factors = []
    for memory in (2**30, 0):
        reference, graph = both(gaitbase)
        settings = CorrectionSettings(refined_ranges=True, memory=memory)
        factors.append(correct_layers(reference, graph, clips(batches), settings).factors)
    assert factors[0] == factors[1]
