import pytest
import torch
from torch import nn

from qgait_ptq.capture.trace import capture
from qgait_ptq.graph.operators import operator_name
from qgait_ptq.graph.passes import SIMPLIFICATION
from qgait_ptq.graph.passes.graph_pass import run_passes
from qgait_ptq.graph.passes.sink_leaky_relu import SINK_LEAKY_RELU


class Net(nn.Module):
    def __init__(self, slope=0.2, read_twice=False):
        super().__init__()
        self.conv, self.slope, self.read_twice = nn.Conv2d(1, 4, 3), slope, read_twice

    def forward(self, silhouettes):
        n, s = silhouettes.shape[:2]
        bent = nn.functional.leaky_relu(self.conv(silhouettes.flatten(0, 1).unsqueeze(1)), self.slope)
        pooled = nn.functional.max_pool2d(bent, 2).amax((2, 3))
        if self.read_twice:
            pooled = pooled + bent.mean((2, 3))
        return pooled.reshape(n, s, 4).amax(1)


def order(**options):
    """Operators in graph order, before and after; the function is checked to stay the same."""
    torch.manual_seed(0)
    captured = capture(Net(**options).eval(), (12, 10))
    graph_module = run_passes(captured.graph_module, SIMPLIFICATION, [captured.example()])
    silhouettes = torch.rand(3, 5, 12, 10)
    expected = graph_module(silhouettes)
    names = []
    for _ in range(2):
        kept = ("leaky_relu", "max_pool2d", "amax")
        names.append([operator_name(n) for n in graph_module.graph.nodes if operator_name(n) in kept])
        run_passes(graph_module, [SINK_LEAKY_RELU], [captured.example()])
    torch.testing.assert_close(graph_module(silhouettes), expected, rtol=0, atol=0)
    return names


def test_a_rectifier_moves_behind_all_maxima_that_follow():
    before, after = order()
    assert before == ["leaky_relu", "max_pool2d", "amax", "amax"]
    assert after[:3] == ["max_pool2d", "amax", "leaky_relu"]


@pytest.mark.parametrize("options", [{"slope": -0.5}, {"read_twice": True}])
def test_it_stays_where_that_would_change_the_result_or_save_nothing(options):
    before, after = order(**options)
    assert before == after
