"""The runner of graph passes gives each pass what it needs, and names a pass that changes the network."""

import pytest
import torch
from torch import nn

from qgait_ptq.capture.trace import capture
from qgait_ptq.errors import CaptureError
from qgait_ptq.graph.operators import aten
from qgait_ptq.graph.passes import SIMPLIFICATION
from qgait_ptq.graph.passes.graph_pass import RELATIVE_TOLERANCE, GraphPass, run_passes
from qgait_ptq.graph.shapes import is_free, observed_shape
from qgait_ptq.graph.views import source


class Mean(nn.Module):
    def forward(self, silhouettes):
        return silhouettes.mean((2, 3)).amax(1, keepdim=True) + 1


@pytest.fixture
def captured():
    return capture(Mean(), (64, 44))


def append(operator, *arguments):
    """A pass that computes something more at the output."""

    def rewrite(graph_module):
        (output,) = (node for node in graph_module.graph.nodes if node.op == "output")
        with graph_module.graph.inserting_before(output):
            call = graph_module.graph.call_function(operator, (source(output), *arguments))
        output.replace_input_with(source(output), call)

    return rewrite


@pytest.mark.parametrize(
    ("rewrite", "message"),
    [
        (append(aten.mul.Tensor, 1.001), r"the pass changes changed the network's output by .* \[2, "),
        (append(aten.squeeze.dim, 1), r"the pass changes changed the shape .* from \[2, 1\] to \[2\]"),
        (append(aten.mul.Tensor, float("nan")), "the pass changes changed the network's output by nan"),
    ],
)
def test_a_pass_that_changes_the_output_is_refused_with_its_name(captured, rewrite, message):
    passes = [GraphPass("keeps", append(aten.mul.Tensor, 1.0)), GraphPass("changes", rewrite)]
    with pytest.raises(CaptureError, match=message):
        run_passes(captured.graph_module, passes, [captured.example()])


def test_known_outputs_are_not_computed_again(captured):
    runs = []
    captured.graph_module.register_forward_hook(lambda *_: runs.append(1))
    example, output = captured.example(), captured.graph_module(captured.example())
    keeps = GraphPass("keeps", append(aten.mul.Tensor, 1.0))
    run_passes(captured.graph_module, [keeps], [example], [output])
    assert len(runs) == 1


def test_free_axes_come_from_the_smallest_and_the_largest_sizes(captured):
    seen = []
    free = GraphPass("looks", lambda graph_module: seen.append(free_axes(graph_module)), needs_free_axes=True)
    sizes = ((2, 7), (2, 5), (2, 12), (2, 17), (3, 7), (1, 7))
    run_passes(captured.graph_module, [free], [captured.example(*size) for size in sizes])
    assert seen == [{0, 1}]


def free_axes(graph_module):
    """Return the free axes of the input."""
    (silhouettes,) = (node for node in graph_module.graph.nodes if node.op == "placeholder")
    return {axis for axis in range(4) if is_free(silhouettes, axis)}


def test_a_pass_finds_the_shapes_and_free_axes_of_nodes_that_earlier_passes_inserted(captured):
    seen = []

    def look(graph_module):
        (output,) = (node for node in graph_module.graph.nodes if node.op == "output")
        last = source(output)
        seen.append((last.target, observed_shape(last), [is_free(last, axis) for axis in range(2)]))

    passes = [
        GraphPass("first", append(aten.mul.Tensor, 1.0)),
        GraphPass("looks", look, needs_free_axes=True),
    ]
    run_passes(captured.graph_module, passes, [captured.example(), captured.example(3, 17)])
    assert seen == [(aten.mul.Tensor, (2, 1), [True, False])]


def test_nodes_without_users_and_their_parameters_are_removed(captured):
    def leave_something(graph_module):
        graph_module.register_buffer("left", torch.zeros(3))
        (output,) = (node for node in graph_module.graph.nodes if node.op == "output")
        with graph_module.graph.inserting_before(output):
            graph_module.graph.get_attr("left")

    before = str(captured.graph_module.graph)
    run_passes(captured.graph_module, [GraphPass("leaves", leave_something)], [captured.example()])
    assert str(captured.graph_module.graph) == before
    assert not hasattr(captured.graph_module, "left")


def test_every_pass_has_a_name_of_its_own_and_says_what_it_does():
    by_name = {graph_pass.name: graph_pass for graph_pass in SIMPLIFICATION}
    assert {graph_pass.rewrite for graph_pass in SIMPLIFICATION} == {p.rewrite for p in by_name.values()}
    assert all(graph_pass.rewrite.__doc__ for graph_pass in SIMPLIFICATION)


class Cancelling(nn.Module):
    """Adds a large bias that the batch norm takes away again: float32 loses what a folded bias keeps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 8, 5, 4), nn.BatchNorm2d(8)
        nn.init.constant_(self.conv.bias, 1e4)
        nn.init.constant_(self.norm.running_mean, 1e4)

    def forward(self, silhouettes):
        n, s, h, w = silhouettes.shape
        maps = self.norm(self.conv(silhouettes.reshape(n * s, 1, h, w)))
        return maps.mean((2, 3)).reshape(n, s, 8).amax(1)


def test_a_network_that_amplifies_rounding_is_measured_with_its_own_noise():
    captured = capture(Cancelling().eval(), (64, 44))
    graph_module = captured.graph_module
    before = graph_module(captured.example())
    run_passes(graph_module, SIMPLIFICATION, [captured.example()])
    difference = (graph_module(captured.example()) - before).abs().max() / before.abs().max()
    assert RELATIVE_TOLERANCE < difference < 1e-2
