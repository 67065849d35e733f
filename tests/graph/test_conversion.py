"""Graphs in double precision and on other devices."""

import pytest
import torch
from torch import nn

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.graph.conversion import in_double, to_device
from qgait_ptq.placement.planning import plan


class MakesTensors(nn.Module):
    """A mask and a ramp of its own, one with torch's default type, one with a type that it names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(12, 6)

    def forward(self, silhouettes):
        count = silhouettes.shape[0]
        mask = torch.ones(count, 1, 1, 1) / 3
        ramp = torch.arange(12, dtype=torch.float32, device=silhouettes.device) / 7
        return self.head((silhouettes * mask + ramp).amax((1, 2)))


@pytest.fixture
def graph():
    _, graph_module, _ = plan(MakesTensors(), (16, 12), QuantConfig())
    return graph_module


def test_double_is_double_throughout(graph):
    """With a float32 constant in between, thirds would be off by 1e-8."""
    silhouettes = torch.rand(2, 5, 16, 12, dtype=torch.float64)
    given = in_double(graph)(silhouettes)
    assert given.dtype is torch.float64
    mask, ramp = 1 / 3, torch.arange(12, dtype=torch.float64) / 7
    expected = MakesTensors().double().head((silhouettes * mask + ramp).amax((1, 2)))
    torch.testing.assert_close(given, expected, rtol=1e-14, atol=1e-14)


def test_the_graph_itself_stays_single(graph):
    in_double(graph)
    assert graph(torch.rand(2, 5, 16, 12)).dtype is torch.float32


def test_what_a_network_makes_by_itself_moves_with_it(graph):
    """The meta device stands for a GPU here: tensors of two devices do not mix there either."""
    moved = to_device(graph, torch.device("meta"))
    assert moved(torch.rand(2, 5, 16, 12, device="meta")).device.type == "meta"
