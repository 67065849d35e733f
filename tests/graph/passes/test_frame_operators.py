"""Operators over frames that torch's exporter does not write for any frame count are rewritten exactly."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.exporters.onnx_file import export_float
from qgait_ptq.graph.operators import operator_name
from qgait_ptq.graph.places import place_of
from qgait_ptq.placement.planning import plan
from qgait_ptq.runtime.without_telemetry import onnxruntime
from tests.frame_networks import OverFrames

PIXELS = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))


def maps(features):
    """Return features with two more axes, ``[n, 8, s, 5, 6]``."""
    return features[:, :, :, None, None] * PIXELS


POOLS = {
    "average to one": lambda f: F.adaptive_avg_pool1d(f, 1).squeeze(2),
    "average of frames, channels kept": lambda f: F.adaptive_avg_pool2d(f.unsqueeze(1), (None, 1)).flatten(1),
    "average of frames, channels pooled": lambda f: (
        F.adaptive_avg_pool2d(f.unsqueeze(1), (4, 1)).flatten(1).repeat(1, 2)
    ),
    "average of frames and pixels": lambda f: F.adaptive_avg_pool3d(maps(f), (1, 2, 3)).amax((2, 3, 4)),
    "average of pixels, frames kept": lambda f: F.adaptive_avg_pool3d(maps(f), (None, 1, 3)).amax((2, 3, 4)),
    "average of four parts": lambda f: F.adaptive_avg_pool1d(f, 4).amax(2),
    "maximum to one": lambda f: F.adaptive_max_pool1d(f, 1).squeeze(2),
    "maximum of frames, channels kept": lambda f: F.adaptive_max_pool2d(f.unsqueeze(1), (8, 1)).flatten(1),
    "maximum of frames and pixels": lambda f: F.adaptive_max_pool3d(maps(f), (1, 2, 3)).mean((2, 3, 4)),
    "maximum of pixels, frames kept": lambda f: F.adaptive_max_pool3d(maps(f), (None, 2, 3)).mean((2, 3, 4)),
    "maximum of three parts": lambda f: F.adaptive_max_pool1d(f, 3).mean(2),
}
ORDERED = {
    "median": lambda f: f.median(2).values,
    "median, axis kept": lambda f: torch.median(f.transpose(1, 2), 1, keepdim=True)[0].squeeze(1),
    "second smallest": lambda f: f.kthvalue(2, 2).values,
}
PIECES = {
    "halves": lambda f: torch.stack([part.amax(2) for part in f.chunk(2, 2)], 2).mean(2),
    "thirds": lambda f: torch.stack([part.amax(2) for part in f.tensor_split(3, 2)], 2).mean(2),
}
STEPS = {"numbered steps": lambda f: (torch.linspace(-1, 1, f.shape[2]) * f).sum(2)}
# Operators of a kind share a network, since each network takes a second. Each has a channel of the embedding.
KINDS = {"pools": POOLS, "order": ORDERED, "pieces and steps": {**PIECES, **STEPS}}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_computes_what_the_network_does_at_every_frame_count(kind):
    operators = KINDS[kind].values()
    network = OverFrames(lambda f: torch.stack([operator(f) for operator in operators], 1))
    captured, graph_module, _ = plan(network, (32, 22), QuantConfig())
    assert (captured.batch, captured.frames, captured.frame_counts.longest) == (None, None, None)
    model = export_float(graph_module, captured, 21).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for batch, frames in ((1, 3), (2, 4), (3, 5), (1, 12), (2, 30)):
        silhouettes = torch.rand(batch, frames, 32, 22)
        (actual,) = session.run(None, {session.get_inputs()[0].name: silhouettes.numpy()})
        np.testing.assert_allclose(actual, network(silhouettes).detach(), atol=1e-5)


def test_the_median_of_an_even_number_of_frames_is_the_lower_one():
    _, graph_module, _ = plan(OverFrames(ORDERED["median"]), (32, 22), QuantConfig())
    silhouettes = torch.rand(2, 2, 32, 22)
    expected = OverFrames(lambda f: f.amin(2))(silhouettes)
    torch.testing.assert_close(graph_module(silhouettes), expected)


def test_new_nodes_have_the_source_location_of_the_node_that_they_replace():
    _, graph_module, _ = plan(OverFrames(ORDERED["median"]), (32, 22), QuantConfig())
    ordered = next(node for node in graph_module.graph.nodes if operator_name(node) == "sort")
    assert place_of(ordered).split(":")[0].endswith("frame_networks.py")


def test_a_median_whose_position_is_used_is_left():
    def position(features):
        values, indices = features.median(2)
        return values * indices

    _, graph_module, _ = plan(OverFrames(position), (32, 22), QuantConfig())
    assert "median" in {operator_name(node) for node in graph_module.graph.nodes}
