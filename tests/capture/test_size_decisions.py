"""What fixes or limits the batch size or the frame count is named with the line of the user's code."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import SymInt

from qgait_ptq.capture.baked_sizes import find_baked_size
from qgait_ptq.capture.trace import capture
from tests.frame_networks import OverFrames


def to_number(features):
    return features.reshape(features.shape[0], 8, int(features.shape[2])).amax(2)


def python_mathematics(features):
    return features.sum(2) / math.sqrt(features.shape[2])


def loop(features):
    return torch.stack([features[:, :, index] * (index + 1) for index in range(features.shape[2])], 2).mean(2)


def window(features):
    return (torch.hann_window(features.shape[2]) * features).sum(2)


def maximum(features):
    maps = features[:, :, :, None, None] * torch.ones(4, 4)
    return F.adaptive_max_pool3d(maps, (features.shape[2], 2, 2)).mean((2, 3, 4))


def even_or_odd(features):
    if features.shape[2] % 2:
        return features.amax(2)
    return features.mean(2)


def pieces_of_eight(features):
    return torch.stack([piece.amax(2) for piece in features.split(8, 2)], 2).mean(2)


def long_ones(features):
    return features[:, :, ::2].mean(2) if features.shape[2] > 40 else features.mean(2)


def sequences(features):
    return torch.stack([one.amax(1) for one in features])


def count_unseen(features):
    frames = features.shape[2]
    number = frames.node.hint if isinstance(frames, SymInt) else frames
    return features.sum(2) / number


def place(function, line):
    """Return ``file:line`` of a line of a function; 1 is the one after ``def``."""
    return f"{__file__}:{inspect.getsourcelines(function)[1] + line}"


CONSTANT, DECIDES = "turns it into a constant", "decides by it"
FIXED = [
    (to_number, f"the code at {place(to_number, 1)} {CONSTANT}"),
    (python_mathematics, f"the code at {place(python_mathematics, 1)} {CONSTANT}"),
    (loop, f"the code at {place(loop, 1)} {CONSTANT}"),
    (window, f"hann_window at {place(window, 1)} {CONSTANT}"),
    (maximum, f"adaptive_max_pool3d at {place(maximum, 2)} {CONSTANT}"),
    (even_or_odd, f"the code at {place(even_or_odd, 1)} {DECIDES}"),
]


@pytest.mark.parametrize(("operator", "cause"), FIXED)
def test_the_code_that_fixes_the_frame_count_is_named(operator, cause):
    captured = capture(OverFrames(operator), (32, 22))
    assert captured.frames == 30
    assert captured.causes == {1: cause}


@pytest.mark.parametrize(
    ("operator", "shortest", "longest", "cause"),
    [
        (pieces_of_eight, 25, 32, f"split at {place(pieces_of_eight, 1)} {DECIDES}"),
        (long_ones, 1, 40, f"the code at {place(long_ones, 1)} {DECIDES}"),
    ],
)
def test_the_code_that_limits_the_frame_count_is_named(operator, shortest, longest, cause):
    captured = capture(OverFrames(operator), (32, 22))
    assert (captured.frame_counts.shortest, captured.frame_counts.longest) == (shortest, longest)
    assert captured.causes == {1: cause}


def test_the_code_that_fixes_the_batch_size_is_named():
    captured = capture(OverFrames(sequences), (32, 22))
    assert (captured.batch, captured.frames) == (1, None)
    assert captured.causes == {0: f"unbind at {place(sequences, 1)} {CONSTANT}"}


def test_a_network_of_any_size_and_a_refusal_of_the_network_have_no_cause():
    assert capture(OverFrames(lambda f: f.amax(2)), (32, 22)).causes == {}
    captured = capture(OverFrames(lambda f: f.unfold(2, 4, 1).amax((2, 3))), (32, 22))
    assert captured.frame_counts.shortest == 4
    assert captured.causes == {}


def test_a_constant_that_torch_did_not_notice_is_found_by_a_second_capture():
    captured = capture(OverFrames(count_unseen), (32, 22))
    assert captured.frames == 30
    # torch keeps the lines of modules only, not of other functions that they call.
    assert captured.causes[1].startswith("div at ")
    assert captured.causes[1].endswith("has it as a constant")
    assert "frame_networks.py:" in captured.causes[1]


def test_captures_without_a_different_constant_have_no_baked_size():
    graphs = [capture(OverFrames(lambda f: f.amax(2)), (32, 22)).graph_module for _ in range(2)]
    assert find_baked_size(*graphs) == ""


def test_a_network_that_takes_no_longer_example_is_captured_all_the_same():
    """A table of 30 positions, read from its end."""
    table = torch.rand(1, 8, 30)
    captured = capture(OverFrames(lambda f: (f + table[:, :, -f.shape[2] :]).mean(2)), (32, 22))
    assert captured.frame_counts.takes(30)
    silhouettes = torch.rand(2, 30, 32, 22)
    network = OverFrames(lambda f: (f + table[:, :, -f.shape[2] :]).mean(2))
    torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))
