"""The network that ships, and what is claimed of it."""

import hashlib
from pathlib import Path

import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.capture.loading import load_model
from qgait_ptq.gait.zoo import NETWORKS

MODELS = Path(__file__).parents[2] / "examples" / "models"
SHIPPED = MODELS / "gaitbase-small.pt"


def test_it_is_small_and_the_one_that_its_readme_describes():
    data = SHIPPED.read_bytes()
    assert len(data) <= 4_000_000
    assert hashlib.sha256(data).hexdigest() in (MODELS / "README.md").read_text()


def test_it_loads_without_naming_its_network():
    network = load_model(SHIPPED, zoo=NETWORKS).network
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 44)).shape == (1, 128, 16)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "drop"), [(8, 0.3), (4, 5.0)])
def test_quantized_it_ranks_unseen_walkers_as_claimed(bits, drop):
    network = load_model(SHIPPED, zoo=NETWORKS).network
    config = qg.QuantConfig(weight_bits=bits, activation_bits=bits, evaluate_simulation=True)
    report = qg.quantize(network, qg.load_walkers(), config).report
    rank1 = {name: report.accuracy[name].rank1["mean"] for name in ("float", "quantized", "onnx")}
    assert report.accuracy["float"].rank1["nm"] > 85
    assert rank1["quantized"] > rank1["float"] - drop
    assert rank1["onnx"] == pytest.approx(rank1["quantized"], abs=0.1)
    assert report.parity.cosine_min >= 0.9999
    assert report.slow_layers == []
