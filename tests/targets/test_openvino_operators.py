"""Operators that OpenVINO lacks, or computes differently, as the file for it has them."""

import pytest
import torch
from torch import nn

from qgait_ptq.exporters.onnx_file import export_float, export_quantized
from qgait_ptq.graph.conversion import in_double
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.targets.registry import get_target
from tests.networks import quantize_network

pytest.importorskip("openvino")
SIZE = (16, 12)


class CircularAndPooled(nn.Module):
    """Circular padding, and pooling of ``[n·s, 4, 16, 12]`` whose windows behind the padding do not count."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
        self.maximum, self.mean = nn.MaxPool2d(2, 5, 1, ceil_mode=True), nn.AvgPool2d(4, 5, 1, ceil_mode=True)
        self.second, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 6)

    def forward(self, silhouettes):
        maps = self.first(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        maps = torch.cat([self.maximum(maps), self.mean(maps)], 1)
        return self.head(self.second(maps).unflatten(0, (silhouettes.shape[0], -1)).amax((1, 3, 4)))


def test_circular_padding_and_pooling_that_rounds_up_at_four_bits():
    """OpenVINO 2026.4 ends the process, or gives maps of another size, for the forms that torch writes."""
    torch.manual_seed(0)
    batches = [random_silhouettes(1, frames, SIZE) for frames in (9, 20)]
    bits = {"weight_bits": 4, "activation_bits": 4}
    quantized = quantize_network(CircularAndPooled().eval(), batches, target="openvino", **bits)
    file = export_quantized(quantized.graph, quantized.captured, get_target("openvino"))
    session, exact = open_session(file.SerializeToString(), "openvino"), in_double(quantized.graph)
    for batch, frames in ((1, 5), (2, 17)):
        silhouettes = random_silhouettes(batch, frames, SIZE)
        given = torch.from_numpy(run_session(session, silhouettes.numpy()))
        expected = exact(silhouettes.double()).float()
        assert torch.cosine_similarity(given, expected).min() >= 0.999
    # The float file runs in OpenVINO for the comparison of speeds.
    in_float = export_float(quantized.float_graph, quantized.captured, get_target("openvino").opset)
    given = run_session(open_session(in_float.SerializeToString(), "openvino"), silhouettes.numpy())
    expected = quantized.float_graph(silhouettes).detach()
    torch.testing.assert_close(torch.from_numpy(given), expected, rtol=1e-4, atol=1e-5)
