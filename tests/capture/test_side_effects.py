"""Networks that write into tensors in place are captured as what they compute."""

import pytest
import torch
from torch import nn

from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.graph.operators import BATCH_NORMS, is_operator
from qgait_ptq.placement.planning import plan
from tests.conftest import randomise_batch_norms


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 6)

    def forward(self, silhouettes):
        maps = self.norm(self.conv(silhouettes.flatten(0, 1).unsqueeze(1)))
        maps = self.change(maps.unflatten(0, (silhouettes.shape[0], -1)))
        return self.head(maps.amax((1, 3, 4)))


class WritesAMask(Small):
    """Hides the borders: the mask is written after it was made."""

    def change(self, maps):
        mask = torch.zeros(maps.shape[-2:])
        mask[2:-2, 3:-3] = 1
        return maps * mask


class WritesIntoAView(Small):
    """Rectifies the first channel of a tensor that is used as a whole afterwards."""

    def change(self, maps):
        maps[:, :, 0].relu_()
        return maps


class WritesWhatIsReadAgain(Small):
    def change(self, maps):
        doubled = maps * 2
        rectified = doubled.relu_()
        return rectified + doubled


class WritesPieces(Small):
    """A result that is filled piece by piece."""

    def change(self, maps):
        filled = torch.empty_like(maps)
        filled[..., :8, :] = maps[..., :8, :].flip(-1)
        filled[..., 8:, :] = maps[..., 8:, :]
        return filled


class RectifiesInPlace(Small):
    """As nearly every network does; nobody else reads the tensor."""

    def change(self, maps):
        return nn.functional.relu(maps, inplace=True)


@pytest.mark.parametrize(
    "make", [WritesAMask, WritesIntoAView, WritesWhatIsReadAgain, WritesPieces, RectifiesInPlace]
)
def test_what_is_written_in_place_is_seen_at_every_size(make):
    network = randomise_batch_norms(make())
    captured, graph_module, layers = plan(network, (16, 12), QuantConfig())
    assert (captured.batch, captured.frames) == (None, None)
    assert [layer.name for layer in layers] == ["conv", "head"]
    assert not any(is_operator(node, BATCH_NORMS) for node in graph_module.graph.nodes)  # folded
    for batch, frames in ((1, 4), (3, 19)):
        silhouettes = captured.example(batch, frames)
        torch.testing.assert_close(graph_module(silhouettes), network(silhouettes))


class MaskOfFrames(Small):
    """Fills the last window of frames up: how many that takes is decided in Python."""

    def change(self, maps):
        frames = maps.shape[1]
        whole = -(-int(frames) // 3) * 3
        mask = torch.zeros(whole)
        mask[:frames] = 1
        return maps * mask[:frames, None, None, None]


def test_a_mask_whose_length_python_counted_is_captured_at_one_length():
    network = randomise_batch_norms(MaskOfFrames())
    captured = capture(network, (16, 12))
    silhouettes = captured.example(3)
    torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))


class ShiftsItsInput(Small):
    """Subtracts from the input itself, and rectifies a view of it."""

    def forward(self, silhouettes):
        silhouettes -= 0.5
        silhouettes.flatten(0, 1)[:, ::2].relu_()
        return super().forward(silhouettes)

    def change(self, maps):
        return maps


def test_a_network_may_write_to_its_input():
    network = randomise_batch_norms(ShiftsItsInput())
    captured = capture(network, (16, 12))
    assert (captured.batch, captured.frames) == (None, None)
    silhouettes = captured.example(3, 19)
    given = silhouettes.clone()
    embedding = captured.graph_module(given)
    assert torch.equal(given, silhouettes)
    torch.testing.assert_close(embedding, network(silhouettes))
