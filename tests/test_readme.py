"""What README.md shows runs."""

import re
from pathlib import Path

import numpy as np

from qgait_ptq.cli.main import COMMANDS
from tests.conftest import make_gaitbase

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_example_runs(walkers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    step = len(walkers) // 8
    names = {
        "network": make_gaitbase(),
        "data": [(walkers[i][0], walkers[i][1].subject) for i in range(0, 8 * step, step)],
        "silhouettes": np.full((5, 64, 44), 255, np.uint8),
    }
    exec(block, names)
    assert names["embedding"].shape == (16, 16)
    assert (tmp_path / "out" / "model.onnx").exists()


def test_every_command_that_it_names_exists():
    named = set(re.findall(r"qgait-ptq ([a-z]+)", README))
    assert named == set(COMMANDS)
