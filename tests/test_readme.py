"""What README.md shows runs."""

import re
from pathlib import Path

import numpy as np
import torch

from qgait_ptq.capture.trace import capture
from qgait_ptq.cli.main import COMMANDS
from tests.conftest import make_gaitbase

README = (Path(__file__).parent.parent / "README.md").read_text()


def python_block(beginning):
    """The one block that begins so."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if b.startswith(beginning))
    return block


class OtherConvention(torch.nn.Module):
    """Takes frames of one channel and lengths, gives a dictionary."""

    def __init__(self):
        super().__init__()
        self.inner = make_gaitbase()

    def forward(self, frames, lengths):
        assert lengths is None
        return {"embeddings": self.inner(frames.squeeze(2))}


def test_the_adapter_brings_a_network_to_the_convention():
    names = {"torch": torch}
    exec(python_block("class MyAdapter"), names)
    network = names["MyAdapter"](OtherConvention().eval())
    silhouettes = torch.rand(2, 5, 64, 44)
    torch.testing.assert_close(
        capture(network, (64, 44)).graph_module(silhouettes), make_gaitbase()(silhouettes)
    )


def test_the_python_example_runs(walkers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = len(walkers) // 8
    names = {
        "network": make_gaitbase(),
        "data": [(walkers[i][0], walkers[i][1].subject) for i in range(0, 8 * step, step)],
        "silhouettes": np.full((5, 64, 44), 255, np.uint8),
    }
    exec(python_block("import qgait_ptq"), names)
    assert names["embedding"].shape == (16, 16)
    assert (tmp_path / "out" / "model.onnx").exists()
    names["known_sequences"] = [walkers[i][0] for i in range(4)]
    names["silhouettes"] = walkers[1][0]
    exec(python_block("embedder = qg.Embedder"), names)
    assert names["found"].indices[0, 0] == 1


def test_every_command_that_it_names_exists():
    named = set(re.findall(r"qgait-ptq ([a-z]+)", README))
    assert named == set(COMMANDS)
