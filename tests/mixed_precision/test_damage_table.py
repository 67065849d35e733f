"""The table of damages, whatever widths the run has."""

import numpy as np
import pytest
import torch
from torch import nn

import qgait_ptq as qg
from qgait_ptq.mixed_precision.damage_table import SensitivityMeasurement
from qgait_ptq.mixed_precision.groups import Kind
from qgait_ptq.system.progress import Silent
from tests.conftest import SHALLOW, make_gaitbase
from tests.networks import draw_people
from tests.small_network import Small

FAST = {
    "calibration_sequences": 8,
    "calibration_frames": 8,
    "correction_frames": 6,
    "rounding": "nearest",
    "idc": {"enabled": False, "frames": 6},
}


@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_an_input_that_an_addition_reads_too_is_measured_at_its_own_width(people, bits):
    """Additions read 8 bits. A run of fewer bits has a second quantizer for the layers, one of 8 has not."""
    config = qg.QuantConfig(weight_bits=bits, activation_bits=bits, **FAST)
    state = qg.prepare(make_gaitbase(**SHALLOW), qg.GaitData(people, people), config, device="cpu")
    measured = SensitivityMeasurement(state, Silent()).measure({Kind.WEIGHTS: (8,), Kind.ACTIVATIONS: (2, 8)})
    inputs = {
        group.layers: damages
        for group, damages in zip(measured.groups, measured.damages(), strict=True)
        if group.kind is Kind.ACTIVATIONS
    }
    assert ("blocks.1.conv1", "blocks.1.shortcut.0") in inputs  # an addition reads what the first one reads
    assert ("blocks.0.conv1",) in inputs
    for damages in inputs.values():
        assert damages[2] > 100 * damages[8] > 0


class Shared(nn.Module):
    """Two calls of one convolution, so that no rounding can serve both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared = nn.Conv2d(1, 4, 3, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 5)

    def forward(self, silhouettes):
        frames = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        frames = self.shared(self.shared(frames).relu()).amax((2, 3))
        return self.last(frames.unflatten(0, silhouettes.shape[:2]).amax(1))


def test_a_shared_weight_is_noted_as_in_a_run(people):
    data = qg.GaitData(people.choose(8), people.choose(4))
    state = qg.prepare(Shared().eval(), data, qg.QuantConfig(**FAST), device="cpu")
    widths = {Kind.WEIGHTS: (8,), Kind.ACTIVATIONS: (8,)}
    notes = SensitivityMeasurement(state, Silent(), 8).measure(widths).notes
    expected = "weights that several layers share are rounded to nearest: shared"
    assert notes.count(expected) == qg.calibrate(state).notes.count(expected) == 1


def test_damage_is_measured_by_the_metric_of_the_data():
    people = draw_people(6, 2, 8)
    errors = {}
    for metric in ("euclidean", "cosine"):
        data = qg.GaitData(people, people, metric=metric)
        state = qg.prepare(Small().eval(), data, qg.QuantConfig(**FAST), device="cpu")
        table = SensitivityMeasurement(state, Silent()).measure({Kind.WEIGHTS: (3,), Kind.ACTIVATIONS: (3,)})
        errors[metric] = [found.damage.distance_error for found in table.measurements]
        assert min(errors[metric]) > 0
    assert not np.isclose(errors["euclidean"], errors["cosine"], rtol=1e-2).any()


@pytest.mark.parametrize("bits", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_the_size_of_a_file_is_estimated_with_the_inputs_that_it_has(people, bits):
    """Inputs of fewer than 8 bits need nodes in the file. The estimate is never too small."""
    layers = {"*": {"activation_bits": bits}}
    config = qg.QuantConfig(weight_bits=8, activation_bits=8, layers=layers, **FAST)
    state = qg.prepare(make_gaitbase(**SHALLOW), qg.GaitData(people, people), config, device="cpu")
    measurement = SensitivityMeasurement(state, Silent())
    estimated = measurement.costs().file_bytes([8] * len(measurement.groups))
    size = qg.export(qg.calibrate(state)).file.model.ByteSize()
    assert size <= estimated - measurement.metadata_bytes() <= 1.02 * size


@pytest.mark.parametrize("settings", [{"input_bits": 1}, {"edge_bits": 3}, {}])
def test_bit_operations_count_the_width_that_the_silhouettes_have(people, settings):
    data = qg.GaitData(people, people)
    state = qg.prepare(make_gaitbase(**SHALLOW), data, qg.QuantConfig(**settings, **FAST), device="cpu")
    measurement = SensitivityMeasurement(state, Silent())
    costs = measurement.costs()
    weights = {layer.name: layer.weight_bits for layer in state.layers}
    inputs = {layer.name: layer.activation_bits for layer in state.layers}
    widths = [
        (weights if group.kind is Kind.WEIGHTS else inputs)[group.layers[0]] for group in measurement.groups
    ]
    wanted = sum(layer.macs * layer.weight_bits * layer.activation_bits for layer in state.layers)
    assert costs.total_bit_operations(widths) == wanted
    assert costs.all_bit_operations == sum(64 * layer.macs for layer in state.layers)
