"""Pooling with a window as long as the frames: the graph pools all frames at every frame count."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from qgait_ptq.capture.trace import capture
from qgait_ptq.graph.frame_counts import ANY_FRAME_COUNT, FrameCounts


class Pooled(nn.Module):
    """Features ``[n, c, t, h]`` of every second frame, pooled to an embedding."""

    def __init__(self, pool):
        super().__init__()
        torch.manual_seed(0)
        self.pool = pool
        self.conv, self.fc = nn.Conv3d(1, 4, (3, 5, 5), (2, 4, 4), (1, 2, 2)), nn.Linear(4, 3)

    def forward(self, silhouettes):
        features = self.conv(silhouettes.unsqueeze(1)).relu().mean(4)
        return self.fc(self.pool(features).flatten(1)[:, :4])


WHOLE = {
    "mean over frames and rows": lambda x: functional.avg_pool2d(x, x.size()[2:]),
    "maximum over frames and rows": lambda x: functional.max_pool2d(x, kernel_size=x.shape[2:], stride=1),
    "mean over frames alone": lambda x: nn.AvgPool2d((x.size(2), 1), stride=1)(x),
    "frames, and windows of two rows": lambda x: functional.max_pool2d(x, (x.size(2), 2), stride=(1, 2)),
    "one axis": lambda x: functional.avg_pool1d(x.mean(3), x.size(2)),
    "maximum of one axis": lambda x: torch.max_pool1d(x.mean(3), x.size(2)),
    "three axes": lambda x: functional.avg_pool3d(x[:, None], (1, *x.shape[2:])).squeeze(1),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_window_as_long_as_the_frames_leaves_their_number_free(name):
    network = Pooled(WHOLE[name]).eval()
    captured = capture(network, (16, 12))
    assert captured.frame_counts == ANY_FRAME_COUNT
    for count in (1, 2, 9, 30, 45):
        silhouettes = torch.rand(2, count, 16, 12)
        torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))


def test_a_window_with_padding_is_left_as_it_is():
    network = Pooled(lambda x: functional.avg_pool2d(x, (x.size(2), 1), padding=(1, 0))).eval()
    captured = capture(network, (16, 12))
    assert captured.frame_counts == FrameCounts(30, 30)
    silhouettes = torch.rand(2, 30, 16, 12)
    torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))


def test_a_window_of_the_length_of_the_example_is_no_window_of_all_frames():
    network = Pooled(lambda x: functional.avg_pool2d(x, (4, 1), stride=1)).eval()  # 7 frames give 4 features
    captured = capture(network, (16, 12))
    for count in (7, 30):
        silhouettes = torch.rand(2, count, 16, 12)
        torch.testing.assert_close(captured.graph_module(silhouettes), network(silhouettes))
