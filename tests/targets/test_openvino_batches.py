"""Files that OpenVINO computes correctly for one sequence only: their frame count stays free."""

import numpy as np
import pytest
import torch
from torch import nn

import qgait_ptq as qg
from qgait_ptq.config.schema import IdcConfig
from tests.small_network import Listener

pytest.importorskip("openvino")


class AverageOfSums(nn.Module):
    """OpenVINO 2026.4 computes the sum over frames wrongly for two or more sequences."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 8, 5, 4, 2), nn.Linear(8, 16)

    def forward(self, silhouettes):
        maps = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu().mean((2, 3))
        frames = maps.unflatten(0, (silhouettes.shape[0], -1))
        return self.fc(frames.sum(1) / silhouettes.shape[1])


def test_only_the_batch_size_is_fixed_where_batches_alone_are_wrong():
    rng = np.random.default_rng(0)
    data = [((rng.random((9, 32, 22)) < 0.3) * np.uint8(255), str(person)) for person in range(2)]
    config = qg.QuantConfig(target="openvino", idc=IdcConfig(enabled=False), rounding="nearest")
    listener = Listener()
    calibrated = qg.calibrate(qg.prepare(AverageOfSums().eval(), data, config, device="cpu"))
    exported = qg.export(calibrated, progress=listener)
    assert (exported.captured.batch, exported.captured.frames) == (1, None)
    (note,) = [note for note in listener.notes if "is taken with" in note]
    assert "a batch size of 1 only: at another, the file in openvino differs from the simulation" in note
    for frames in (4, 21):
        clip = torch.from_numpy(rng.random((1, frames, 32, 22)) < 0.3).float()
        expected = exported.quantized(clip).detach()
        torch.testing.assert_close(exported.file.run(clip), expected, rtol=0, atol=1e-5)
