"""Pooling over all frames keeps the frame count free, however the network spells it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from qgait_ptq.capture.trace import capture

POOLS = {
    "the frame axis": lambda x: functional.avg_pool1d(x, kernel_size=x.size()[2]),
    "a list of sizes": lambda x: functional.avg_pool1d(x, x.size()[2:]),
    "two axes": lambda x: functional.avg_pool2d(x.unsqueeze(-1), x.unsqueeze(-1).size()[2:]).squeeze(-1),
    "one size for two axes": lambda x: functional.avg_pool2d(x[..., :1, None], 1).squeeze(-1),
    "windows of the default stride": lambda x: functional.avg_pool1d(x, 2).amax(2, keepdim=True),
    "windows": lambda x: functional.avg_pool1d(x, 3, 1, 1).amax(2, keepdim=True),
}


class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 4, 5, 8), pool

    def forward(self, silhouettes):
        n, s = silhouettes.shape[:2]
        frames = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).amax((2, 3))
        return self.pool(frames.reshape(n, s, 4).transpose(1, 2))


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_average_pooling_over_frames_takes_any_number_of_them(pool):
    network = Pooled(pool).eval()
    captured = capture(network, (64, 44))
    assert (captured.batch, captured.frames) == (None, None)
    frames = torch.rand(3, 23, 64, 44)
    assert torch.allclose(captured.graph_module(frames), network(frames), atol=1e-6)
