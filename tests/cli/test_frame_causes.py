"""``inspect`` shows what fixes the frame count."""

import inspect
import math

import torch
from click.testing import CliRunner

from qgait_ptq.cli.inspect import command
from tests.frame_networks import OverFrames


def make() -> OverFrames:
    return OverFrames(lambda features: features.sum(2) / math.sqrt(features.shape[2]))


def test_inspect_names_the_code_that_fixes_the_frame_count(tmp_path):
    weights = str(tmp_path / "weights.pt")
    torch.save(make().state_dict(), weights)
    options = [weights, "--factory", f"{__name__}:make", "--height", "32", "--width", "22"]
    done = CliRunner().invoke(command, options, catch_exceptions=False)
    shown = "".join(done.output.split())  # without the terminal's line breaks
    line = inspect.getsourcelines(make)[1] + 1
    assert "frames:30framesonly" in shown
    assert f"frames:thecodeat{__file__}:{line}turnsitintoaconstant" in shown
