"""``model.pt2`` at other sizes than it was exported with."""

import html
import io
import json
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from qgait_ptq.capture.captured import BATCH_AXIS, FRAME_AXIS
from qgait_ptq.errors import FixedSizeWarning
from qgait_ptq.exporters.torch_program import export_program
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.operators import RECURRENT
from tests.networks import quantize_network
from tests.weight_only_networks import SIZE, OverFrames, Recurrent

SIZES = ((1, 1), (3, 5), (2, 7), (1, 30))


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, frames, *SIZE, generator=generator) for frames in (5, 9)]


def quantized(inner, channels):
    torch.manual_seed(0)
    return quantize_network(OverFrames(inner, channels).eval(), batches())


def load(program):
    return torch.export.load(io.BytesIO(program.content)).module()


RECURRENCES = {
    "lstm": (Recurrent("LSTM", 8, num_layers=2, bidirectional=True), 16),
    "projected": (Recurrent("LSTM", 8, proj_size=4), 4),
    "gru": (Recurrent("GRU", 8), 8),
    "rnn": (Recurrent("RNN", 8, nonlinearity="relu"), 8),
}


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("projected", "rnn")]


@pytest.mark.parametrize("name", ["lstm", "gru", *OTHERS])
def test_a_recurrent_operator_leaves_the_frame_count_free(name):
    network = quantized(*RECURRENCES[name])
    kernels = {operator: dict(operator.py_kernels) for operator in RECURRENT}
    program = export_program(network.graph, network.captured)
    assert program.notes == ()
    assert program.captured.free_axes == {BATCH_AXIS, FRAME_AXIS}
    module = load(program)
    assert sum(node.target in RECURRENT for node in module.graph.nodes) == 1
    for size in SIZES:
        silhouettes = torch.rand(*size, *SIZE)
        torch.testing.assert_close(module(silhouettes), network.graph(silhouettes))
    assert {operator: dict(operator.py_kernels) for operator in RECURRENT} == kernels


def sum_in_a_loop(silhouettes):
    """Sum frames one by one: torch.export makes the number of steps a constant."""
    total = silhouettes[:, 0]
    for frame in range(1, silhouettes.shape[1]):
        total = total + silhouettes[:, frame]
    return total.flatten(1)


def sum_of_two(silhouettes):
    """A batch as a constant, too."""
    rows = [sum_in_a_loop(silhouettes[row : row + 1]) for row in range(silhouettes.shape[0])]
    return torch.cat(rows)


def graph_of(function):
    graph = fx.Graph()
    graph.output(graph.call_function(function, (graph.placeholder("silhouettes"),)))
    return fx.GraphModule(nn.Module(), graph)


@pytest.fixture(scope="module")
def gru():
    return quantized(*RECURRENCES["gru"])


@pytest.mark.parametrize(
    ("function", "free", "notes"),
    [
        (
            sum_in_a_loop,
            {BATCH_AXIS},
            ["model.pt2 takes 30 frames only: the program of torch.export is wrong"],
        ),
        (sum_of_two, set(), ["model.pt2 takes batches of 1 only", "model.pt2 takes 30 frames only"]),
    ],
)
def test_sizes_that_torch_fixes_are_noted(function, free, notes, gru):
    program = export_program(graph_of(function), gru.captured)
    assert program.captured.free_axes == free
    assert len(program.notes) == len(notes)
    assert all(line.startswith(start) for line, start in zip(program.notes, notes, strict=True))
    module = load(program)
    silhouettes = torch.rand(program.captured.batch or 3, 30, *SIZE)
    torch.testing.assert_close(module(silhouettes), function(silhouettes))
    with pytest.raises((AssertionError, RuntimeError)):
        module(silhouettes[:, :7])


def test_a_saved_result_says_which_sizes_are_fixed(eight_bits, tmp_path):
    """The warning is for Python and the command line, the report for later."""
    result = replace(eight_bits, simulation=graph_of(sum_in_a_loop))
    with pytest.warns(FixedSizeWarning, match=r"model\.pt2 takes 30 frames only") as told:
        folder = result.save(tmp_path / "out", torch_file=True)
    assert len(told) == 1
    assert json.loads((folder / "report.json").read_text())["notes"][-1] == str(told[0].message)
    assert str(told[0].message) in html.unescape((folder / "report.html").read_text())
    assert not any("model.pt2" in note for note in result.report.notes)


def test_frame_counts_that_the_graph_does_not_take_are_refused(gru):
    captured = replace(gru.captured, frame_counts=FrameCounts(shortest=5, longest=40))
    module = load(export_program(gru.graph, captured))
    for frames in (5, 40):
        silhouettes = torch.rand(2, frames, *SIZE)
        torch.testing.assert_close(module(silhouettes), gru.graph(silhouettes))
    for frames in (4, 41):
        with pytest.raises((AssertionError, RuntimeError)):
            module(torch.rand(2, frames, *SIZE))
