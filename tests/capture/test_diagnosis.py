"""A network that cannot be captured is refused with the line that stopped it, and what helps."""

import importlib.util

import pytest

from qgait_ptq.capture.diagnosis import explain_failure
from qgait_ptq.capture.trace import capture
from qgait_ptq.errors import CaptureError

SOURCE = """\
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        f = self.conv(x.flatten(0, 1).unsqueeze(1)).amax((2, 3)).unflatten(0, (x.shape[0], -1))
        {line}
        return f.amax(1)
"""
LINES = {
    "f = f + 1 if f.mean() > 0 else f": ("makes a decision", "torch.where"),
    "f = f[:, : int(f.abs().max().item()) + 1]": ("makes a decision, a size", "torch.where"),
    "f = f + torch.from_numpy(f.detach().numpy())": ("converts tensors to numpy", "torch operators"),
}


def load(folder, line):
    path = folder / "mynets.py"
    path.write_text(SOURCE.format(line=line))
    spec = importlib.util.spec_from_file_location("mynets_of_a_user", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Network().eval()


@pytest.mark.parametrize("line", LINES)
def test_the_line_the_construct_and_the_ways_out_are_named(line, tmp_path, capsys):
    network = load(tmp_path, line)
    with pytest.raises(CaptureError) as caught:
        capture(network, (64, 44))
    text = str(caught.value)
    what, remedy = LINES[line]
    assert f"{tmp_path}/mynets.py:12" in text
    assert line in text
    assert what in text
    assert remedy in text
    assert "--adapter" in text
    assert capsys.readouterr().err == ""  # nothing of what torch prints


def test_without_a_line_of_the_user_the_first_line_of_torch_is_given():
    text = explain_failure(RuntimeError("no such thing\nand more"), "the exporter refuses")
    assert text.startswith("the exporter refuses: RuntimeError: no such thing\n")
    assert "and more" not in text
