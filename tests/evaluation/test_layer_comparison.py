"""Layers of a written file against the float network."""

import json

import numpy as np
import pytest
import torch

from qgait_ptq import QuantConfig, quantize
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.errors import ModelError
from qgait_ptq.evaluation.layer_comparison import _Sums, compare_layers
from qgait_ptq.gait.data.directory import load_directory
from qgait_ptq.gait.data.sequences import Reading
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.gait.zoo import GaitGL, GaitPart
from qgait_ptq.placement.planning import plan
from tests.conftest import make_gaitbase, make_gaitset, randomise_batch_norms


def make_gaitpart():
    torch.manual_seed(0)
    return randomise_batch_norms(GaitPart(channels=(4, 8, 16), halvings=(0, 1, 2), parts=4, embedding=16))


def make_gaitgl():
    torch.manual_seed(0)
    return randomise_batch_norms(GaitGL(channels=(4, 8, 16)))


def write(network, config, walkers_root, folder):
    """Quantize and write; gives the layers of the report."""
    quantize(network, load_directory(walkers_root, reading=Reading(longest=24)), config, device="cpu").save(
        folder
    )
    return json.loads((folder / "report.json").read_text())["layers"]


SCALED = QuantConfig(idc=IdcConfig(enabled=False), correction_frames=8, calibration_sequences=24)


@pytest.fixture(scope="module")
def gaitbase_written(walkers_root, tmp_path_factory):
    """The folder of a result, and the layers of its report."""
    folder = tmp_path_factory.mktemp("gaitbase")
    return folder, write(make_gaitbase(), SCALED, walkers_root, folder)


def compare(network, config, walkers_root, folder, layers):
    """Some sequences of the test people through both."""
    test = load_directory(walkers_root).test
    _, graph, _ = plan(network, (64, 44), config)
    sequences = [
        (network_batch(*test[i], (64, 44), limit=12 + i % 4), test[i][1].subject) for i in range(0, 60, 9)
    ]
    return compare_layers(graph, folder / "model.onnx", sequences, layers)


@pytest.mark.parametrize(
    "make",
    [
        make_gaitbase,
        pytest.param(make_gaitgl, marks=pytest.mark.slow),
        pytest.param(make_gaitpart, marks=pytest.mark.slow),
    ],
)
def test_layers_of_an_eight_bit_file_agree_whatever_equalization_scaled(
    make, walkers_root, gaitbase_written, tmp_path
):
    """Without the factors of equalization in the report, scaled channels would look like errors."""
    folder, layers = gaitbase_written
    if make is not make_gaitbase:
        folder, layers = tmp_path, write(make(), SCALED, walkers_root, tmp_path)
    compared = compare(make(), SCALED, walkers_root, folder, layers)
    assert len(compared) == len(layers)
    assert [layer.sqnr_db for layer in compared] == sorted(layer.sqnr_db for layer in compared)
    # Other sequences and lengths than those of the report, but the same network.
    assert np.median([abs(layer.sqnr_db - layer.simulation_sqnr_db) for layer in compared]) < 2
    assert compared[0].sqnr_db > 15
    forgotten = [{**layer, "equalization_factors": None} for layer in layers]
    apart = {layer.name: layer for layer in compare(make(), SCALED, walkers_root, folder, forgotten)}
    assert min(layer.sqnr_db for layer in apart.values()) < compared[0].sqnr_db - 3


@pytest.mark.slow
def test_a_layer_that_the_file_looks_up_has_no_output_to_compare(walkers_root, tmp_path):
    network = make_gaitbase(stem_kernel=3)
    settings = {"idc": IdcConfig(enabled=False), "rounding": "nearest", "equalization": "none"}
    config = QuantConfig(input_bits=1, **settings)
    layers = write(network, config, walkers_root, tmp_path)
    compared = compare(network, config, walkers_root, tmp_path, layers)
    assert {layer["name"] for layer in layers} - {layer.name for layer in compared} == {"stem.0"}
    assert next(layer for layer in layers if layer["name"] == "stem.0")["activation_bits"] == 1


@pytest.mark.slow
def test_fewer_bits_make_larger_errors_and_float_layers_are_not_listed(walkers_root, tmp_path):
    compared = {}
    for bits in (8, 2):
        config = QuantConfig(
            weight_bits=bits, activation_bits=8, exclude=("blocks.0.*",), idc=IdcConfig(enabled=False)
        )
        layers = write(make_gaitbase(), config, walkers_root, tmp_path / str(bits))
        compared[bits] = compare(make_gaitbase(), config, walkers_root, tmp_path / str(bits), layers)
    eight, two = compared[8], compared[2]
    assert not any(layer.name.startswith("blocks.0") for layer in eight)
    last = {layer.name: layer for layer in two}
    for layer in eight:
        if layer.name != "stem.0":  # the first layer has eight bits in both
            assert last[layer.name].sqnr_db < layer.sqnr_db
            assert last[layer.name].distance_error > layer.distance_error


def test_a_file_of_another_network_is_refused(walkers_root, gaitbase_written):
    folder, layers = gaitbase_written
    with pytest.raises(ModelError, match="exported from another network"):
        compare(make_gaitset(), SCALED, walkers_root, folder, layers)


def test_outputs_of_zeros_agree():
    """A layer can give zeros for blank silhouettes, in the file as in the float network."""
    sums = _Sums()
    sums.add(torch.zeros(1, 8, 4), torch.zeros(1, 8, 4), None, [])
    sums.add(torch.ones(1, 8, 4), torch.zeros(1, 8, 4), None, [])
    assert sums.cosines == [1, 0]
