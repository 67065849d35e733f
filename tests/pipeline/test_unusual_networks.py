"""Networks that are valid and odd: they are quantized, or refused with a reason, and never silently wrong."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qgait_ptq import QuantConfig, quantize
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.errors import CalibrationError, CaptureError, ConfigError

W4A4 = QuantConfig(weight_bits=4, activation_bits=4, idc=IdcConfig(enabled=False))


class Small(nn.Module):
    """Two convolutions, a maximum over frames and places, a fully connected layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 6)

    def maps(self, frames):
        return functional.relu(self.second(functional.relu(self.first(frames))))

    def forward(self, silhouettes):
        maps = self.maps(silhouettes.flatten(0, 1).unsqueeze(1))
        return self.head(maps.unflatten(0, (silhouettes.shape[0], -1)).amax((1, 3, 4)))


class CalledTwice(Small):
    def __init__(self):
        super().__init__()
        self.classifier, self.temperature = nn.Linear(6, 99), nn.Parameter(torch.ones(3))

    def maps(self, frames):
        return functional.relu(self.second(super().maps(frames)))


class TiedWeights(Small):
    def __init__(self):
        super().__init__()
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.third.weight = self.second.weight

    def maps(self, frames):
        return functional.relu(self.third(super().maps(frames)))


class NothingToQuantize(nn.Module):
    def forward(self, silhouettes):
        return silhouettes.amax((1, 3))


def changed(change):
    """A small network with other parameters."""
    network = Small()
    with torch.no_grad():
        change(network)
    return network


def silence(network):
    """Give channels weights of zero, and a bias with which they never fire."""
    for layer, channel in ((network.first, 3), (network.second, 2), (network.head, 1)):
        layer.weight[channel] = 0
    network.first.bias[:2].fill_(-100)


SOUND = {
    "channels of zeros, and some that never fire": lambda: changed(silence),
    "one channel 10,000 times larger": lambda: changed(lambda n: n.second.weight[0].mul_(1e4)),
    "a layer that is called twice, and weights that nothing uses": CalledTwice,
    "layers that share a weight": TiedWeights,
    "half precision": lambda: Small().half(),
    "double precision": lambda: Small().double(),
}


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    walks = ((rng.random((12 + i % 5, 16, 12)) < 0.4).astype(np.uint8) * 255 for i in range(16))
    return [(walk, f"person {i // 4}") for i, walk in enumerate(walks)]


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_network_agrees_with_itself_at_four_bits(name, pairs):
    result = quantize(SOUND[name]().eval(), pairs, W4A4, device="cpu")
    report = result.report.to_json()
    assert report["agreement"]["cosine_min"] > 0.99
    assert report["parity"]["cosine_min"] > 0.9999
    assert "classifier" not in str(report["layers"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (NothingToQuantize, ConfigError, "no convolution and no linear layer"),
        (lambda: changed(lambda n: n.first.bias.fill_(-100)), CalibrationError, "the same embedding for all"),
        (lambda: changed(lambda n: n.head.weight.zero_()), CalibrationError, "the same embedding for all"),
        (lambda: changed(lambda n: n.head.weight.fill_(float("nan"))), CaptureError, "NaN or infinite"),
        (lambda: changed(lambda n: n.head.weight.fill_(3e38)), CaptureError, "NaN or infinite"),
    ],
)
def test_a_network_that_tells_nobody_apart_is_refused(make, error, message, pairs):
    with pytest.raises(error, match=message):
        quantize(make().eval(), pairs, W4A4, device="cpu")


def test_the_users_network_keeps_its_precision_and_its_mode(pairs):
    network = Small().half().train()
    quantize(network, pairs, W4A4, device="cpu")
    assert network.training
    assert network.head.weight.dtype is torch.float16
