"""`quantize` from Python."""

import json

import numpy as np
import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.errors import CalibrationError, CaptureError, ConfigError, DataError
from qgait_ptq.gait.data.directory import load_directory
from qgait_ptq.gait.data.sequences import Reading
from qgait_ptq.gait.opengait.adapter import OpenGaitAdapter
from qgait_ptq.pipeline.quantize import begin
from qgait_ptq.stages.state import Source
from tests.conftest import SHALLOW, SHORT, make_gaitbase
from tests.remembered import forget_exports
from tests.small_network import Listener, Small

FAST = {"calibration_sequences": 12}


def pairs(walkers, count=16):
    step = len(walkers) // count
    return [(walkers[i][0][:SHORT], walkers[i][1].subject) for i in range(0, step * count, step)]


class Maps(torch.nn.Module):
    """A small network of maps of three channels."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2, 1), torch.nn.ReLU()
        )
        self.linear = torch.nn.Linear(8, 16)

    def forward(self, maps):
        n, s = maps.shape[:2]
        return self.linear(self.layers(maps.flatten(0, 1)).mean((2, 3)).unflatten(0, (n, s)).amax(1))


@pytest.mark.parametrize(("count", "noted"), [(3, True), (4, False)])
def test_test_sequences_that_are_calibration_sequences_are_noted(count, noted):
    data = [(np.full((5, 32, 22), 200 + index, np.uint8), str(index)) for index in range(count)]
    listener = Listener()
    state = qg.prepare(Small(), data, qg.QuantConfig(), device="cpu", progress=listener)
    for notes in (state.notes, listener.notes):
        assert any("3 of 3 test sequences are calibration sequences, too" in note for note in notes) is noted


@pytest.fixture(scope="module")
def evaluated(walkers_root):
    data = load_directory(walkers_root, reading=Reading(longest=24))
    return qg.quantize(make_gaitbase(**SHALLOW), data, qg.QuantConfig(**FAST), device="cpu")


@pytest.fixture(scope="module")
def of_pairs(walkers):
    """A network, its weights as they were, and the result of quantizing it with pairs."""
    network = make_gaitbase(**SHALLOW)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    return network, before, qg.quantize(network, pairs(walkers), qg.QuantConfig(**FAST), device="cpu")


@pytest.mark.parametrize("frames", [0, -3, 2.5, 30.0, "30", True], ids=repr)
@pytest.mark.parametrize("call", [qg.quantize, qg.prepare], ids=["quantize", "prepare"])
def test_a_frame_count_must_be_an_integer_of_at_least_one(call, frames):
    with pytest.raises(ConfigError, match=f"^frames is {frames!r}; it must be an integer of at least 1"):
        call(Maps(), [], device="cpu", frames=frames)


def test_a_frame_count_of_numpy_is_taken_as_an_integer(walkers):
    state = begin(Source(Maps(), frames=np.int64(30)), pairs(walkers, 4), device="cpu")
    assert type(state.source.frames) is int


def test_the_report_has_the_promised_keys(evaluated):
    report = evaluated.report.to_json()
    for network in ("float", "onnx"):
        assert set(report["accuracy"][network]["rank1"]) == {"nm", "bg", "cl", "mean"}
        assert {"mAP", "mINP"} <= set(report["accuracy"][network])
    assert set(report["size_bytes"]) == {"float", "onnx"}
    assert {"cosine_min", "max_abs"} <= set(report["parity"])
    assert {"name", "op", "weight_bits", "activation_bits", "scales", "sqnr_db"} <= set(report["layers"][0])
    assert set(report["seconds"]) >= {"capture", "ranges", "export", "evaluation"}
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("target", ["onnxruntime", pytest.param("litert-int8", marks=pytest.mark.slow)])
def test_ranges_are_those_that_the_integers_stand_for(walkers, of_pairs, target):
    config = qg.QuantConfig(**FAST, target=target)
    known = {"onnxruntime": of_pairs[2]}
    result = known.get(target) or qg.quantize(make_gaitbase(**SHALLOW), pairs(walkers), config, device="cpu")
    for layer in result.report.layers[1:]:
        low, high = layer.scales.activation_range
        assert low <= 0 < high
        assert high - low == pytest.approx(255 * layer.scales.activation_scale)
    assert result.report.layers[1].scales.activation_range[0] == 0  # behind a ReLU


def test_eight_bits_rank_as_float_does(evaluated):
    accuracy = evaluated.report.accuracy
    assert accuracy["onnx"].mAP == pytest.approx(accuracy["float"].mAP, abs=2)
    assert evaluated.report.agreement.sqnr_db > 40


def test_the_report_tells_float_from_quantized(evaluated):
    agreement = evaluated.report.agreement
    assert 0.9 < agreement.cosine_min < 1
    assert evaluated.report.accuracy["float"].mAP != evaluated.report.accuracy["onnx"].mAP


def test_pairs_give_agreement_instead_of_accuracy(of_pairs):
    _, _, result = of_pairs
    assert result.report.accuracy == {}
    assert 0.5 < result.report.agreement.cosine_mean < 1


def test_maps_of_several_channels_go_the_whole_way_to_the_embedder(walkers, tmp_path):
    """Silhouettes with two grey maps below them, as skeleton maps are."""
    rng = np.random.default_rng(0)

    def with_maps(silhouettes):
        maps = rng.integers(0, 256, (len(silhouettes), 2, *silhouettes.shape[1:]), dtype=np.uint8)
        return np.concatenate([silhouettes[:, None], maps], 1)

    data = [(with_maps(silhouettes), label) for silhouettes, label in pairs(walkers, 8)]
    torch.manual_seed(0)
    network = Maps().eval()
    result = qg.quantize(network, data, qg.QuantConfig())
    assert result.report.to_json()["model"]["frame_shape"] == [3, 64, 44]
    embedder = qg.Embedder(result.save(tmp_path / "out") / "model.onnx")
    assert embedder.frame_shape == (3, 64, 44)
    with torch.inference_mode():
        expected = result.model(torch.from_numpy(data[0][0])[None].float() / 255)[0].T
    given = torch.from_numpy(embedder(data[0][0]))
    assert torch.cosine_similarity(given.flatten(), expected.flatten(), dim=0) > 0.999
    with pytest.raises(DataError, match=r"64×44, .* takes 3×64×44"):
        embedder(walkers[0][0])


def test_the_users_network_is_left_as_it_was(of_pairs):
    network, before, _ = of_pairs
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_same_seed_gives_the_same_file(walkers, of_pairs):
    forget_exports()
    again = qg.quantize(make_gaitbase(**SHALLOW), pairs(walkers), qg.QuantConfig(**FAST), device="cpu")
    assert again.onnx_model.SerializeToString() == of_pairs[2].onnx_model.SerializeToString()


def test_the_file_carries_what_it_is_but_no_paths(evaluated, walkers_root):
    metadata = evaluated.report.metadata()
    assert metadata["config"]["weight_bits"] == 8
    assert metadata["accuracy"]["onnx"] == evaluated.report.accuracy["onnx"].model_dump()
    assert str(walkers_root) not in json.dumps(metadata)
    assert str(walkers_root).encode() not in evaluated.onnx_model.SerializeToString()


def test_a_result_is_saved_whole(evaluated, tmp_path):
    folder = evaluated.save(tmp_path / "a" / "b")
    assert sorted(file.name for file in folder.iterdir()) == ["model.onnx", "report.html", "report.json"]
    assert json.loads((folder / "report.json").read_text())["model"]["parts"] == 16


def test_the_opengait_convention_needs_only_the_adapter(walkers):
    class LikeOpenGait(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_gaitbase(**SHALLOW)

        def forward(self, inputs):
            silhouettes, *_, lengths = inputs
            assert lengths is None
            embedding = self.inner(silhouettes[0])
            return {"training_feat": {}, "inference_feat": {"embeddings": embedding}}

    result = qg.quantize(OpenGaitAdapter(LikeOpenGait().eval()), pairs(walkers, 8), qg.QuantConfig(**FAST))
    assert result.report.agreement.cosine_min > 0.9


def test_a_collapsed_result_is_refused_loudly(walkers):
    config = qg.QuantConfig(weight_bits=2, activation_bits=2, edge_bits=2, minimum_agreement=0.9999)
    with pytest.raises(CalibrationError, match="no longer rank"):
        qg.quantize(make_gaitbase(**SHALLOW), pairs(walkers), config)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], DataError, "no sequence"),
        (7, DataError, "not a GaitDataset"),
        ([(np.zeros((3, 64, 44), np.float32), "a")], DataError, "float32"),
        ([(np.full((3, 60, 40), 255, np.uint8), "a")], CaptureError, r"60, 40"),
    ],
)
def test_data_that_cannot_be_used_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        qg.quantize(make_gaitbase(**SHALLOW), data)


def test_sequences_of_different_sizes_are_refused(walkers):
    odd = (np.full((3, 32, 22), 255, np.uint8), "z")
    with pytest.raises(DataError, match="32×22"):
        qg.quantize(make_gaitbase(**SHALLOW), [*pairs(walkers, 6), odd, odd], qg.QuantConfig())


def test_unknown_targets_and_devices_are_refused(walkers):
    with pytest.raises(ConfigError, match="onnxruntime"):
        qg.quantize(make_gaitbase(**SHALLOW), pairs(walkers), qg.QuantConfig(target="abacus"))
    with pytest.raises(ConfigError, match="not available"):
        qg.quantize(make_gaitbase(**SHALLOW), pairs(walkers), device="cuda:77")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives(walkers, evaluated):
    result = qg.quantize(make_gaitbase(**SHALLOW), pairs(walkers), qg.QuantConfig(**FAST), device="cuda")
    assert result.report.parity.cosine_min > 0.999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": {"weight_bits": 4}}, "config is a dict, not a QuantConfig; pass qg.QuantConfig"),
        ({"frames": "30"}, "frames is '30'; it must be an integer of at least 1"),
        ({"frames": 0}, "frames is 0; it must"),
    ],
)
def test_settings_of_another_type_are_refused_before_the_run(settings, message, few_walkers):
    with pytest.raises(ConfigError, match=message):
        qg.quantize(torch.nn.Identity(), few_walkers, **settings)
