"""Networks that take a batch of one sequence only: every stage keeps to it."""

import numpy as np
import pytest
from torch import nn
from torch.nn import functional as F

import qgait_ptq as qg
from qgait_ptq.config.schema import FinetuneConfig, IdcConfig
from tests.small_network import Small


class Pinned(Small):
    """The size of the batch becomes a constant of the graph, in a list of sequences."""

    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, silhouettes):
        sequences = len(list(silhouettes.unbind(0)))
        frames = silhouettes.shape[1]
        maps = self.norm(self.conv(silhouettes.reshape(sequences * frames, 1, 32, 22))).relu()
        maps = self.second(F.max_pool2d(maps, 2)).relu().mean((2, 3))
        return self.fc(maps.reshape(sequences, frames, 8).amax(1))


@pytest.fixture(scope="module")
def prepared():
    rng = np.random.default_rng(0)
    walks = [(rng.random((9, 32, 22)) < 0.1 + 0.05 * (i // 3)).astype(np.uint8) * 255 for i in range(30)]
    people = qg.GaitDataset.from_pairs([(walk, f"p{i // 3}") for i, walk in enumerate(walks)])
    state = qg.prepare(Pinned().eval(), qg.GaitData(people, people), device="cpu")
    assert state.captured.batch == 1
    return state, qg.GaitData(people, people)


def test_the_file_does_not_name_the_machine_that_made_it(prepared):
    """The report has the line of code that fixes the batch; the file is the same wherever it is made."""
    _, data = prepared
    config = qg.QuantConfig(idc=IdcConfig(enabled=False), rounding="nearest")
    result = qg.quantize(Pinned().eval(), data, config, device="cpu")
    assert __file__ in str(result.report.to_json()["model"]["size_causes"])
    assert __file__.encode() not in result.onnx_model.SerializeToString()


@pytest.mark.parametrize(
    ("idc", "finetune"),
    [
        (IdcConfig(enabled=True, steps=3), FinetuneConfig()),
        (
            IdcConfig(enabled=False),
            FinetuneConfig(enabled=True, steps=4, labelled_every=2, block_steps=2, refit=32, rank_steps=2),
        ),
    ],
)
def test_all_stages_run_one_sequence_at_a_time(prepared, idc, finetune):
    _, data = prepared
    config = qg.QuantConfig(weight_bits=4, activation_bits=4, idc=idc, finetune=finetune)
    state = qg.calibrate(qg.prepare(Pinned().eval(), data, config, device="cpu"))
    found = state.record["idc" if idc.enabled else "finetune"]
    assert found["of_layers"] == 3
