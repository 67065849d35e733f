"""A code base is imported without what is not installed, and using that is what fails."""

import importlib
import sys

import pytest

from qgait_ptq.gait.opengait.missing_imports import find_missing, without_missing

NETWORK = """
import json
import torch.utils.data
import absent_plots.style as style
from absent_vision import transforms
from absent_vision.ops import RoIAlign
from own_tools import helper

INTERPOLATION = transforms.InterpolationMode.BILINEAR

class Aligned(RoIAlign):
    pass

def align():
    return RoIAlign((64, 44))

def align_own():
    return Aligned()

def help_me():
    return helper()
"""


@pytest.fixture
def code_base(tmp_path, monkeypatch):
    (tmp_path / "network_of_a_code_base.py").write_text(NETWORK)
    (tmp_path / "own_tools.py").write_text("def helper(): return 'here'\n")
    (tmp_path / "not_python.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("network_of_a_code_base", "own_tools"):
        sys.modules.pop(name, None)


def test_only_what_is_not_installed_is_missing(code_base):
    assert find_missing(code_base) == (
        "absent_plots",
        "absent_plots.style",
        "absent_vision",
        "absent_vision.ops",
    )


def test_the_code_is_imported_and_what_is_there_works(code_base):
    with without_missing(code_base):
        network = importlib.import_module("network_of_a_code_base")
    assert network.help_me() == "here"
    assert not any(name.startswith("absent") for name in sys.modules)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("absent_vision")


@pytest.mark.parametrize("function", ["align", "align_own"])
def test_using_what_is_not_installed_says_what_is(code_base, function):
    with without_missing(code_base):
        network = importlib.import_module("network_of_a_code_base")
    with pytest.raises(ModuleNotFoundError, match=r"absent_vision\.ops\.RoIAlign|Aligned"):
        getattr(network, function)()


def test_a_module_of_torch_that_needs_another_package_is_missing_with_it(code_base, monkeypatch):
    (code_base / "logs.py").write_text("from torch.utils.tensorboard import SummaryWriter\n")
    monkeypatch.setattr(
        "qgait_ptq.gait.opengait.missing_imports.NEEDS", {"torch.utils.tensorboard": "absent_board"}
    )
    with without_missing(code_base):
        importlib.import_module("logs")
    del sys.modules["logs"]
    assert "torch.utils.tensorboard" not in sys.modules


def test_what_a_file_that_is_not_python_imports_is_nothing(tmp_path):
    (tmp_path / "broken.py").write_text("import (")
    assert find_missing(tmp_path) == ()
