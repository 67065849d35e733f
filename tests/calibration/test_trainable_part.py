"""Which part of a network gradients can train."""

import math

import numpy as np
import pytest
import torch

from qgait_ptq.calibration.trainable_part import anchor_loss, find_trainable_part
from qgait_ptq.calibration.training_batches import LabelledBatches
from qgait_ptq.placement.quantized_layers import activation_quantizers, quantized_layers
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from tests.conftest import make_gaitbase
from tests.networks import labelled_batches, quantize_network, training_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def calibrated(batches):
    return quantize_network(make_gaitbase(), batches, weight_bits=8, activation_bits=3)


def coarse(graph):
    return [name for name, q in activation_quantizers(graph, inputs=False).items() if q.grid.bits < 8]


def loss_that_jumps_at(names, graph):
    """A loss of 1 that doubles when the scale of one of these quantizers changes."""
    before = {name: float(activation_quantizers(graph, inputs=False)[name].scale) for name in names}

    def loss(changed):
        found = activation_quantizers(changed, inputs=False)
        return 1.0 + any(not math.isclose(float(found[name].scale), before[name]) for name in names)

    return loss


def test_layers_that_lead_to_a_jump_are_not_trained(calibrated):
    graph = calibrated.graph
    second = coarse(graph)[1]
    part = find_trainable_part(graph, loss_that_jumps_at([second], graph))
    assert list(part.jumps.values()) == [1.0]
    after = next(i for i, node in enumerate(graph.graph.nodes) if str(node.target) == second)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    layers = [layer.node for layer in quantized_layers(graph)]
    behind = [layer for layer in layers if order[layer] > after]
    assert {layer for layer in layers if layer in part.nodes} == set(behind)
    assert (part.layers, part.all_layers) == (len(behind), len(layers))


def test_a_slope_is_no_jump(calibrated):
    """Gradients see a loss that rises on one side and falls on the other, however steep it is."""
    name = coarse(calibrated.graph)[1]
    before = float(activation_quantizers(calibrated.graph)[name].scale)

    def loss(changed):
        return 1.0 + 10 * (float(activation_quantizers(changed)[name].scale) / before - 1)

    assert not find_trainable_part(calibrated.graph, loss).jumps


def test_a_jump_on_one_side_is_found(calibrated):
    name = coarse(calibrated.graph)[1]
    before = float(activation_quantizers(calibrated.graph)[name].scale)

    def loss(changed):
        return 1.2 if float(activation_quantizers(changed)[name].scale) > before else 1.0

    (rise,) = find_trainable_part(calibrated.graph, loss).jumps.values()
    assert rise == pytest.approx(0.1)


def test_a_smooth_network_is_trained_as_a_whole(calibrated):
    part = find_trainable_part(calibrated.graph, lambda graph: 1.0)
    assert part.nodes == tuple(calibrated.graph.graph.nodes)
    assert not part.jumps


def test_a_network_that_jumps_at_its_end_is_trained_as_a_whole(calibrated, monkeypatch):
    """There would be nothing to train. The comparison after training decides."""
    monkeypatch.setattr("qgait_ptq.calibration.trainable_part.FINE_BITS", 9)  # the last quantizer has 8 bits
    graph = calibrated.graph
    last = list(activation_quantizers(graph, inputs=False))[-1]
    part = find_trainable_part(graph, loss_that_jumps_at([last], graph))
    held = [layer.node for layer in quantized_layers(graph) if layer.node not in part.nodes]
    behind = [layer for layer in quantized_layers(graph) if layer.input_path == last]
    assert part.jumps
    assert part.layers == (len(behind) or part.all_layers)
    assert len(held) == part.all_layers - part.layers
    assert "1 of" in part.describe("IDC") if behind else "all layers" in part.describe("IDC")


def test_quantizers_that_change_nothing_are_trained_as_they_are(calibrated):
    part = find_trainable_part(calibrated.graph, lambda graph: 0.0)
    assert not part.jumps
    assert part.layers == part.all_layers


def test_scales_are_as_before(calibrated):
    before = {name: q.scale.clone() for name, q in activation_quantizers(calibrated.graph).items()}
    find_trainable_part(calibrated.graph, loss_that_jumps_at(coarse(calibrated.graph)[:1], calibrated.graph))
    for name, quantizer in activation_quantizers(calibrated.graph).items():
        assert torch.equal(quantizer.scale, before[name])


def test_the_loss_is_the_relative_error_on_training_batches(calibrated, people):
    data = training_data(people, calibrated.float_graph)
    source: LabelledBatches = labelled_batches(data)
    clips = torch.cat([source.draw(np.random.default_rng([5, i]), i).clips for i in range(2)])
    with torch.no_grad():
        wanted, given = calibrated.float_graph(clips), calibrated.graph(clips)
    spread = (wanted - wanted.mean(0, keepdim=True)).square().sum()
    expected = float((given - wanted).square().sum() / spread)
    loss = anchor_loss(calibrated.float_graph, source, 5, CPU, len(clips))
    assert loss(calibrated.graph) == pytest.approx(expected, rel=1e-4)
    one_by_one = anchor_loss(calibrated.float_graph, source, 5, CPU, 1)
    assert one_by_one(calibrated.graph) == pytest.approx(expected, rel=1e-4)
    set_quantizing(calibrated.graph, False)
    assert loss(calibrated.graph) < 1e-9
    set_quantizing(calibrated.graph, True)
