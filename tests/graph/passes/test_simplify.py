import pytest
import torch
from torch import nn

from qgait_ptq.capture.trace import capture
from qgait_ptq.graph.operators import BATCH_NORMS, MATRIX_PRODUCTS, aten, is_operator
from qgait_ptq.graph.passes import SIMPLIFICATION
from qgait_ptq.graph.passes.graph_pass import run_passes
from tests.conftest import make_gaitbase, randomise_batch_norms


class PartsThenNorm(nn.Module):
    """A per-part fully connected layer in some spelling, and a batch norm over channels and parts."""

    def __init__(self, spelling):
        super().__init__()
        self.spelling = spelling
        self.fc = nn.Parameter(torch.randn(4, 8, 6))
        self.bn = nn.BatchNorm1d(6 if spelling == "shared" else 24)

    def forward(self, silhouettes):
        features = silhouettes.amax(1)[:, :32, :8].unflatten(1, (4, 8)).mean(2)  # [n, 4, 8]
        by_part = features.permute(1, 0, 2)
        product = torch.bmm(by_part, self.fc) if self.spelling == "bmm" else by_part.matmul(self.fc)
        if self.spelling == "parts first":
            return self.bn(product.transpose(0, 1).reshape(-1, 24)).reshape(-1, 4, 6).transpose(1, 2)
        if self.spelling == "shared":  # by all parts, as in GaitGL
            return self.bn(product.permute(1, 2, 0))
        return self.bn(product.permute(1, 2, 0).flatten(1)).view(-1, 6, 4)


class SharedConvolution(nn.Module):
    """One convolution, two batch norms: neither may be folded into the other's weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, silhouettes):
        frames = silhouettes.flatten(0, 1).unsqueeze(1)
        features = self.first(self.conv(frames)) + self.second(self.conv(frames))
        return features.unflatten(0, (silhouettes.shape[0], -1)).amax((1, 4))


class LinearThenNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.bn = nn.Linear(44, 8), nn.BatchNorm1d(8)
        self.dropout = nn.Dropout()

    def forward(self, silhouettes):
        return self.bn(self.dropout(self.linear(silhouettes.amax((1, 2)))))


class NormBeforeConvolution(nn.Module):
    """Cannot be folded backwards; must stay."""

    def __init__(self):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3)

    def forward(self, silhouettes):
        features = self.conv(self.bn(silhouettes.flatten(0, 1).unsqueeze(1)))
        return features.unflatten(0, (silhouettes.shape[0], -1)).amax((1, 4))


def simplified(network):
    captured = capture(randomise_batch_norms(network), (64, 44))
    return run_passes(captured.graph_module, SIMPLIFICATION, [captured.example()])


def count(graph_module, operators):
    return sum(is_operator(node, operators) for node in graph_module.graph.nodes)


@pytest.mark.parametrize(
    "network",
    [
        make_gaitbase(),
        PartsThenNorm("matmul"),
        PartsThenNorm("bmm"),
        PartsThenNorm("parts first"),
        PartsThenNorm("shared"),
        SharedConvolution(),
        LinearThenNorm(),
    ],
    ids=["gaitbase", "matmul", "bmm", "parts first", "shared norm", "shared layer", "linear"],
)
def test_every_batch_norm_is_folded_and_the_function_stays(network):
    graph_module = simplified(network)
    silhouettes = (torch.rand(3, 9, 64, 44) < 0.5).float()
    expected = network.eval()(silhouettes)
    assert count(graph_module, BATCH_NORMS) == 0
    assert (graph_module(silhouettes) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("spelling", ["matmul", "bmm", "parts first"])
def test_per_part_layers_become_grouped_convolutions(spelling):
    graph_module = simplified(PartsThenNorm(spelling))
    assert count(graph_module, MATRIX_PRODUCTS) == 0
    (convolution,) = [n for n in graph_module.graph.nodes if n.target is aten.conv2d.default]
    assert convolution.args[6] == 4


def test_a_batch_norm_before_a_convolution_stays():
    assert count(simplified(NormBeforeConvolution()), BATCH_NORMS) == 1


def test_unused_parameters_are_dropped(gaitbase):
    graph_module = simplified(gaitbase)
    assert not [name for name, _ in graph_module.named_buffers()]
    assert not [name for name, _ in graph_module.named_parameters() if "bn" in name]
