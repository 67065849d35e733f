"""Rounding errors of float32 move values that lie on the border of a rounding step, and no others."""

import pytest
import torch
from torch import fx, nn

from qgait_ptq.quantizer.fake_quantize import FakeQuantize
from qgait_ptq.quantizer.grid import IntegerGrid
from qgait_ptq.quantizer.observers import MinMaxObserver
from qgait_ptq.verification.simulation import DRAWS, Simulation

GRID = IntegerGrid(4, signed=False, symmetric=False)


@pytest.fixture
def simulation():
    """Quantizes to steps of 1, after a division: 4.5 lies on the border of two of them."""
    quantizer = FakeQuantize(GRID, MinMaxObserver(GRID))
    quantizer.disable_observer()
    root = nn.Module()
    root.quantizer = quantizer
    graph = fx.Graph()
    values = graph.placeholder("values")
    halves = graph.call_function(torch.div, (values, 2))
    graph.output(graph.call_module("quantizer", (halves,)))
    return Simulation.of(fx.GraphModule(root, graph))


def test_values_on_a_border_fall_to_either_side(simulation):
    values = torch.tensor([[9.0, 9.01, 8.99, 20.0]])
    assert simulation.exact(values).tolist() == [[4.0, 5.0, 4.0, 10.0]]
    rounded = torch.cat(list(simulation.rounded(values)))
    assert rounded.shape == (DRAWS, 4)
    assert set(rounded[:, 0].tolist()) == {4.0, 5.0}
    assert rounded[:, 1:].unique(dim=0).tolist() == [[5.0, 4.0, 10.0]]


def test_errors_have_the_size_that_float32_has_at_the_largest_value(simulation):
    """Around 10, float32 has steps of 2⁻²⁰: a value nearer to a border than that can cross it."""
    near, far = 9 - 2.0**-21, 9 - 2.0**-17
    rounded = torch.cat(list(simulation.rounded(torch.tensor([[near, far, 20.0]]))))
    assert 5.0 in rounded[:, 0]
    assert rounded[:, 1].unique().tolist() == [4.0]


def test_the_first_result_is_float32_and_the_errors_are_the_same_each_time(simulation):
    values = torch.full((1, 64), 9.0)
    first, second = (torch.cat(list(simulation.rounded(values))) for _ in range(2))
    assert torch.equal(first, second)
    assert first[0].unique().tolist() == [4.0]
    assert len({tuple(row.tolist()) for row in first}) == DRAWS


def test_tensors_without_values_stay_as_they_are(simulation):
    assert all(rounded.shape == (0, 4) for rounded in simulation.rounded(torch.empty(0, 4)))
