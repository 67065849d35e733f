"""Maxima over frames in OpenVINO, which rounds before it scales where a quantizer lies behind them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qgait_ptq as qg
from qgait_ptq.config.schema import IdcConfig

pytest.importorskip("openvino")


class SignedMaxima(nn.Module):
    """The values before the maximum have both signs, so that it is quantized behind the maximum."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.activation = nn.Conv2d(1, 8, 5, 4, 2), nn.Linear(8, 16), activation

    def forward(self, silhouettes):
        maps = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).mean((2, 3))
        return self.head(self.activation(maps.unflatten(0, (silhouettes.shape[0], -1))).amax(1))


def norm(values):
    return F.layer_norm(values, (8,))


@pytest.mark.parametrize(
    ("activation", "target"),
    [
        (F.gelu, "generic-qdq"),
        (norm, "openvino"),
        pytest.param(torch.tanh, "openvino", marks=pytest.mark.slow),
        pytest.param(torch.tanh, "generic-qdq", marks=pytest.mark.slow),
        pytest.param(F.gelu, "openvino", marks=pytest.mark.slow),
        pytest.param(norm, "generic-qdq", marks=pytest.mark.slow),
    ],
)
def test_the_file_gives_the_same_in_openvino_as_in_the_simulation(target, activation, tmp_path):
    rng = np.random.default_rng(0)
    walks = [((rng.random((9 + i % 3, 32, 22)) < 0.1 + 0.1 * (i // 2)) * np.uint8(255)) for i in range(8)]
    config = qg.QuantConfig(target=target, idc=IdcConfig(enabled=False), rounding="nearest")
    result = qg.quantize(
        SignedMaxima(activation).eval(),
        [(walk, str(i // 2)) for i, walk in enumerate(walks)],
        config,
        device="cpu",
    )
    assert not [note for note in result.report.notes if "openvino" in note]
    embedder = qg.Embedder(result.save(tmp_path) / "model.onnx", runtime="openvino")
    for walk in walks[:4]:
        expected = result.model(torch.from_numpy(walk)[None].float() / 255)[0].detach().numpy().ravel()
        np.testing.assert_allclose(embedder(walk).ravel(), expected, atol=1e-4 * np.abs(expected).max())
