"""A network that goes another way at some frame counts: the file computes what it does, or refuses."""

import operator
from contextlib import nullcontext

import numpy as np
import pytest
import sympy
import torch
from torch import fx, nn

import qgait_ptq as qg
from qgait_ptq.capture.comparison import Comparer
from qgait_ptq.capture.guards import LARGEST_SIZE, Segment, as_function, holds
from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.errors import DataError, SequenceLengthWarning
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.network_input import random_silhouettes
from qgait_ptq.graph.operators import aten

FAST = qg.QuantConfig(idc=IdcConfig(enabled=False), rounding="nearest", bias_correction=False)


class Windows(nn.Module):
    """Three frames at a time, with a branch on the number of frames before."""

    def __init__(self, before=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.before = before
        self.conv = nn.Conv3d(1, 8, (3, 5, 5), (1, 4, 4), (1, 2, 2))
        self.fc = nn.Linear(8, 16)

    def forward(self, silhouettes):
        frames = self.before(silhouettes).unsqueeze(1)
        return self.fc(self.conv(frames).relu().mean((3, 4)).amax(2))


def repeat_short(x):
    """OpenGait's GaitGL repeats sequences of one or two frames."""
    s = x.shape[1]
    return x.repeat(1, 3 if s == 1 else 2, 1, 1) if s < 3 else x


BRANCHES = {
    "any": (lambda x: x, FrameCounts()),
    "short ones repeated": (repeat_short, FrameCounts(3, None, {1: 3, 2: 2})),
    "half of long ones": (lambda x: x[:, ::2] if x.shape[1] > 40 else x, FrameCounts(1, 40)),
    "half of all but short ones": (lambda x: x[:, ::2] if x.shape[1] > 10 else x, FrameCounts(11)),
    "another way at one length": (lambda x: x * 2 if x.shape[1] == 23 else x, FrameCounts(24)),
    "only long enough ones": (lambda x: x.unfold(1, 4, 1).amax(-1), FrameCounts(4)),
    "even and odd": (lambda x: x[:, ::2] if x.shape[1] % 2 else x, FrameCounts(30, 30)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_the_capture_knows_the_frame_counts_at_which_it_is_right(name):
    before, expected = BRANCHES[name]
    network = Windows(before).eval()
    captured = capture(network, (32, 22))
    assert captured.frame_counts == expected
    for count in (1, 2, 3, 4, 10, 11, 22, 23, 24, 30, 40, 41, 60):
        if expected.takes(count):
            silhouettes = (torch.rand(2, count, 32, 22) < 0.3).float()
            torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))


class NineFramesOrMore(nn.Module):
    def forward(self, silhouettes):
        if silhouettes.shape[1] < 9:
            raise ValueError("too short")
        return silhouettes.mean((1, 2))


class NoGuards:
    """Guards of a network whose refusals torch.export has not recorded."""

    def segments(self):
        return [Segment(1, LARGEST_SIZE, ())]


def test_lengths_that_the_network_refuses_are_found_without_a_guard():
    graph = fx.Graph()
    graph.output(graph.call_function(aten.mean.dim, (graph.placeholder("x"), [1, 2])))
    comparer = Comparer(NineFramesOrMore(), fx.GraphModule({}, graph), (32, 22))
    assert comparer.frame_counts(NoGuards(), 2, 31) == FrameCounts(9)


def test_each_size_is_compared_once_and_the_output_of_the_graph_is_kept():
    class Counting(nn.Flatten):
        calls = 0

        def forward(self, silhouettes):
            self.calls += 1
            return super().forward(silhouettes)

    network = Counting(2)
    graph = fx.Graph()
    graph.output(graph.call_function(aten.flatten.using_ints, (graph.placeholder("x"), 2)))
    comparer = Comparer(network, fx.GraphModule({}, graph), (4, 4))
    for size in ((2, 7), (1, 7), (2, 7)):
        assert comparer.compare(size).name == "AGREES"
    assert network.calls == 2
    assert torch.equal(comparer.outputs[2, 7], network(random_silhouettes(2, 7, (4, 4))))


def test_a_graph_that_fails_at_a_length_prints_nothing(capsys):
    graph = fx.Graph()
    silhouettes = graph.placeholder("x")
    more_than_five = graph.call_function(
        operator.sub, (graph.call_function(aten.sym_size.int, (silhouettes, 1)), 5)
    )
    frames = graph.call_function(operator.floordiv, (14, more_than_five))  # by zero at five frames
    graph.output(graph.call_function(aten.view.default, (silhouettes, [2, frames, -1])))
    comparer = Comparer(nn.Flatten(2), fx.GraphModule({}, graph), (32, 22))
    assert [comparer.compare((2, count)).name for count in (7, 5)] == ["AGREES", "DIFFERS"]
    assert capsys.readouterr().err == ""


def test_a_guard_with_an_unknown_function_is_evaluated_all_the_same():
    size = sympy.Symbol("s", integer=True, positive=True)

    class HalfRoundedDown(sympy.Function):
        @classmethod
        def eval(cls, value):
            return value // 2 if value.is_number else None

    guard = as_function(HalfRoundedDown(size) < 10, size)
    assert [guard(count) for count in (1, 19, 20)] == [True, True, False]


def cut_to_windows(x):
    """Frames are cut to the largest multiple of half their number: a remainder by zero at one frame."""
    half = x.shape[1] // 2
    return x[:, : x.shape[1] - 1] if x.shape[1] > 2 and x.shape[1] % half else x


def test_a_guard_without_a_value_at_some_size_does_not_hold_there():
    network = Windows(cut_to_windows).eval()
    captured = capture(network, (32, 22))
    for count in (1, 2, 29, 30, 31):
        if captured.frame_counts.takes(count):
            silhouettes = (torch.rand(2, count, 32, 22) < 0.3).float()
            torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))


def test_a_guard_that_divides_by_zero_at_some_sizes_does_not_hold_there():
    def in_quarters(x):
        return x if x.shape[1] % (x.shape[1] // 4) < 40 else x * 2

    captured = capture(Windows(in_quarters).eval(), (32, 22))
    assert captured.frame_counts.shortest == 4
    undefined = sympy.nan
    assert not holds(lambda size: undefined > size, 3)


def test_a_branch_on_the_batch_size_pins_it():
    captured = capture(Windows(lambda x: x * 2 if x.shape[0] > 6 else x).eval(), (32, 22))
    assert (captured.batch, captured.frames) == (1, None)


def walks(lengths, people=4):
    """Random silhouettes of some lengths for each of some people."""
    rng = np.random.default_rng(0)
    return [
        (np.where(rng.random((length, 32, 22)) < 0.3, 255, 0).astype(np.uint8), f"p{person}")
        for person in range(people)
        for length in lengths
    ]


@pytest.fixture(scope="module")
def result():
    network = Windows(BRANCHES["half of long ones"][0]).eval()
    sequences = qg.GaitDataset.from_pairs(walks([12, 50]))
    return network, qg.quantize(network, qg.GaitData(sequences, sequences), FAST, device="cpu")


def test_a_file_refuses_lengths_at_which_it_would_be_wrong(result, tmp_path):
    network, quantized = result
    quantized.save(tmp_path)
    embedder = qg.Embedder(tmp_path / "model.onnx")
    for length in (1, 2, 12, 40):
        ((sequence, _),) = walks([length], people=1)
        expected = network(torch.from_numpy(sequence)[None].float() / 255)[0]
        np.testing.assert_allclose(embedder(sequence)[0], expected.detach(), atol=0.02)
    with pytest.raises(DataError, match=r"41 frames; the network is captured for 1 to 40 frames"):
        embedder(walks([41], people=1)[0][0])
    assert embedder.frame_counts == FrameCounts(1, 40)


def test_evaluation_leaves_out_what_the_file_refuses_and_says_so(result):
    _, quantized = result
    notes = " ".join(quantized.report.notes)
    assert "test sequences are left out of the evaluation" in notes
    assert "1 to 40 frames" in notes
    assert quantized.report.model.frame_counts.longest == 40


def test_agreement_is_measured_against_the_network_itself(monkeypatch):
    """A graph that is wrong everywhere agrees with itself, not with the network."""
    network = Windows().eval()
    own = network.forward
    calls = []

    def forward(silhouettes):
        calls.append(str(list(silhouettes.shape)))
        return own(silhouettes)

    monkeypatch.setattr(network, "forward", forward)
    data = qg.GaitData(qg.GaitDataset.from_pairs(walks([12])), qg.GaitDataset.from_pairs(walks([19, 13])))
    qg.quantize(network, data, FAST, device="cpu")
    assert {"[1, 19, 32, 22]", "[1, 13, 32, 22]"} <= set(calls)


def test_a_file_of_one_frame_count_is_evaluated_as_it_is_used(tmp_path):
    network = Windows(BRANCHES["even and odd"][0]).eval()
    data = walks([10, 13])
    quantized = qg.quantize(network, data, FAST, device="cpu", frames=30)
    quantized.save(tmp_path)
    embedder = qg.Embedder(tmp_path / "model.onnx")
    for length in (10, 47):
        ((sequence, _),) = walks([length], people=1)
        repeated = sequence[np.arange(30) % length]
        told = pytest.warns(SequenceLengthWarning, match="30 frames only") if length == 10 else nullcontext()
        with told:  # once
            embedding = embedder(sequence)
        np.testing.assert_array_equal(embedding, embedder(repeated))


class SumOverFrames(nn.Module):
    """Frames are added, so that clips longer than the data have sums that never occur."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.hidden, self.fc = nn.Conv2d(1, 8, 5, 4, 2), nn.Linear(8, 32), nn.Linear(32, 16)

    def forward(self, silhouettes):
        n, s = silhouettes.shape[:2]
        features = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu().mean((2, 3)).view(n, s, 8)
        return self.fc(self.hidden(features.sum(1)).relu())


def test_corrections_see_no_clip_that_is_longer_than_the_data():
    config = qg.QuantConfig(idc=IdcConfig(enabled=False))
    result = qg.quantize(SumOverFrames().eval(), walks([12], people=12), config, device="cpu")
    assert result.report.agreement.sqnr_db > 30
