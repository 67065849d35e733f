"""Networks that take one sequence only, and networks that do not take one sequence alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from qgait_ptq.capture.trace import capture
from qgait_ptq.errors import CaptureError


class Squeezing(nn.Module):
    """Removes all axes of size 1, and with one sequence also that of the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv3d(1, 4, (1, 5, 5), (1, 4, 4)), nn.Linear(4, 3)

    def forward(self, silhouettes):
        return self.fc(self.conv(silhouettes.unsqueeze(1)).relu().amax((2, 3, 4), keepdim=True).squeeze())


class Normalizing(Squeezing):
    """Fails with one sequence."""

    def forward(self, silhouettes):
        return functional.normalize(super().forward(silhouettes), dim=1)


class OneOnly(Squeezing):
    """Takes one sequence, as evaluation code often does, and at least ten frames."""

    def forward(self, silhouettes):
        if len(silhouettes) > 1 or silhouettes.shape[1] < 10:
            raise ValueError("one sequence of ten frames at a time")
        return super().forward(silhouettes)[None]


class Twice(nn.Module):
    """The adapter of the error."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, silhouettes):
        return self.network(torch.cat([silhouettes, silhouettes]))[: len(silhouettes)]


@pytest.mark.parametrize(
    ("network", "problem"),
    [(Squeezing(), r"a tensor \[3\]"), (Normalizing(), "but not on one alone .IndexError")],
)
def test_a_network_that_does_not_take_one_sequence_is_refused_with_an_adapter_that_helps(network, problem):
    with pytest.raises(CaptureError, match=f"(?s){problem}.*removes the axis of the batch.*torch.cat"):
        capture(network.eval(), (16, 12))
    captured = capture(Twice(network).eval(), (16, 12))
    silhouettes = torch.rand(2, 9, 16, 12)
    expected = network(silhouettes)[:1]
    torch.testing.assert_close(captured.graph_module(silhouettes[:1]), expected)


def test_a_network_that_takes_one_sequence_only_is_captured_with_one():
    network = OneOnly().eval()
    captured = capture(network, (16, 12))
    assert (captured.batch, captured.frame_counts.longest) == (1, None)
    assert captured.frame_counts.shortest == 10
    silhouettes = torch.rand(1, 45, 16, 12)
    torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))


class BatchStatistics(Squeezing):
    """Normalises by the statistics of its input, so a sequence depends on the others of the batch."""

    def forward(self, silhouettes):
        maps = self.conv(silhouettes.unsqueeze(1))
        maps = functional.batch_norm(maps, None, None, training=True)
        return self.fc(maps.relu().amax((2, 3, 4)))


def test_a_network_that_mixes_sequences_is_taken_one_sequence_at_a_time():
    network = BatchStatistics().eval()
    captured = capture(network, (16, 12))
    silhouettes = torch.rand(2, 9, 16, 12)
    assert not torch.allclose(network(silhouettes)[:1], network(silhouettes[:1]))
    assert captured.batch == 1
    assert "other sequences of the batch" in captured.described_causes()["batch"]
    assert torch.allclose(captured.graph_module(silhouettes[:1]), network(silhouettes[:1]), atol=1e-5)
