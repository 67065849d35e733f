"""Training parameters of a quantized graph, and their step sizes."""

import copy

import pytest
import torch

from qgait_ptq.calibration.trained_graph import LearningRates, TrainedGraph, output_magnitudes
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from qgait_ptq.quantizer.trainable import WeightMode, WeightTrainer
from tests.conftest import SHALLOW, make_gaitbase
from tests.networks import quantize_network

RATES = LearningRates(scale=1e-3, weight=1e-2, bias=2e-3)


@pytest.fixture(scope="module")
def trained(batches):
    """A network with 3-bit layers between a first and a last one of 8 bits."""
    graph = quantize_network(
        make_gaitbase(**SHALLOW), batches[:4], weight_bits=3, activation_bits=4, weight_range="full"
    ).graph
    reference = copy.deepcopy(graph)
    set_quantizing(reference, False)
    return TrainedGraph(graph, reference, output_magnitudes(graph, batches[0]), WeightMode.LATENT)


def rate_of(groups, parameter):
    (rate,) = (group["lr"] for group in groups if any(one is parameter for one in group["params"]))
    return rate


def test_weights_of_all_widths_move_by_the_same_share_of_their_range(trained):
    groups = trained.groups(RATES)
    by_bits = {
        trainer.grid.bits: rate_of(groups, trainer.latent) / trainer.grid.quant_max
        for _, trainer in trained.trainers()
        if isinstance(trainer, WeightTrainer)
    }
    assert set(by_bits) == {3, 8}
    assert by_bits[8] == pytest.approx(1e-2 / 7)
    assert by_bits[3] == pytest.approx(1e-2 / 3)  # a step of its own size: below 4 bits, steps count


def test_every_parameter_that_learns_is_in_one_group(trained):
    groups = trained.groups(RATES)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(set(listed)) == len(listed)
    learning = {id(p) for _, trainer in trained.trainers() for p in trainer.parameters() if p.requires_grad}
    assert learning <= set(listed)
    for _, trainer in trained.trainers():
        for name, parameter in trainer.named_parameters():
            if name in ("log_scale", "shift"):
                assert rate_of(groups, parameter) == {"log_scale": RATES.scale, "shift": RATES.bias}[name]
    assert torch.optim.Adam(groups).param_groups
