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


RNG = np.random.default_rng(0)
WALKS = [((RNG.random((9, 32, 22)) < 0.3) * np.uint8(255), str(person)) for person in range(2)]


def export(target):
    """Return the exported state of the network for a target, and the notes of the export."""
    config = qg.QuantConfig(target=target, idc=IdcConfig(enabled=False), rounding="nearest")
    listener = Listener()
    calibrated = qg.calibrate(qg.prepare(AverageOfSums().eval(), WALKS, config, device="cpu"))
    return qg.export(calibrated, progress=listener), listener.notes


def test_only_the_batch_size_is_fixed_where_batches_alone_are_wrong():
    exported, notes = export("openvino")
    assert (exported.captured.batch, exported.captured.frames) == (1, None)
    (note,) = [note for note in notes if "is taken with" in note]
    assert "a batch size of 1 only: at another, the file in openvino differs from the simulation" in note
    for frames in (4, 21):
        clip = torch.from_numpy(RNG.random((1, frames, 32, 22)) < 0.3).float()
        expected = exported.quantized(clip).detach()
        torch.testing.assert_close(exported.file.run(clip), expected, rtol=0, atol=1e-5)


def test_a_file_for_any_runtime_is_compared_in_openvino_too():
    exported, notes = export("generic-qdq")
    (note,) = [note for note in notes if "openvino" in note]
    assert note.startswith("do not use this file in openvino: the file differs from the simulation")
    assert "a batch size of 2" in note
    assert "--target openvino" in note
    assert exported.captured.batch is None
