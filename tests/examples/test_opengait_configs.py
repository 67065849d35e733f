"""The command for OpenGait's configurations writes its section, with what works and why the rest does not."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import opengait_configs
from measure_models import split_page, write_page

BASE_MODEL = """
import torch.nn as nn
class BaseModel(nn.Module):
    def __init__(self, cfgs, training):
        raise RuntimeError("wants a trainer")
"""
NET = """
import torch
from ..base_model import BaseModel
class Net(BaseModel):
    def build_network(self, model_cfg):
        self.conv = torch.nn.Conv2d(1, model_cfg["width"], 5, 4)
        self.norm = torch.nn.BatchNorm2d(model_cfg["width"])
    def forward(self, inputs):
        if self.training:
            raise ValueError("wants the inputs of training")
        sils = inputs[0][0]
        x = self.norm(self.conv(sils.flatten(0, 1).unsqueeze(1))).relu().mean(3)
        embed = x.unflatten(0, (sils.shape[0], -1)).amax(1)
        return {"inference_feat": {"embeddings": embed}}
"""


@pytest.fixture
def repository(tmp_path):
    models = tmp_path / "OpenGait" / "opengait" / "modeling" / "models"
    models.mkdir(parents=True)
    (models.parent / "base_model.py").write_text(BASE_MODEL)
    (models / "net.py").write_text(NET)
    configs = tmp_path / "OpenGait" / "configs" / "net"
    configs.mkdir(parents=True)
    rgb = {"evaluator_cfg": {"transform": [{"type": "BaseRgbTransform"}]}}
    for name, model, more in (
        ("a", {"model": "Net", "width": 8}, {}),
        ("b", {"model": "Net", "width": 16}, {}),
        ("rgb", {"model": "Net", "width": 8}, rgb),
        ("wrong", {"model": "Net"}, {}),
    ):
        (configs / f"{name}.yaml").write_text(yaml.safe_dump({"model_cfg": model, **more}))
    yield tmp_path / "OpenGait"
    for name in [name for name in sys.modules if name.partition(".")[0] == "modeling"]:
        del sys.modules[name]


def test_the_section_lists_networks_and_reasons(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(opengait_configs, "LENGTHS", (2, 9))
    monkeypatch.setattr(opengait_configs, "FRAMES", 6)
    out = tmp_path / "docs"
    out.mkdir()
    (out / "models.md").write_text("# Networks\n")
    arguments = [str(repository), "--out", str(out)]
    done = CliRunner().invoke(opengait_configs.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads((out / "opengait.json").read_text())["configurations"]
    assert found["net/a.yaml"]["cosine"] > 0.9
    assert found["net/a.yaml"]["parity"] > 0.999
    assert "cosine" not in found["net/b.yaml"]  # captured only: the network and its input are those of a
    page = (out / "models.md").read_text()
    assert page.startswith("# Networks\n\n## OpenGait's configurations\n")
    assert "| Net | 64×44 | 2 | `net/a.yaml` | any | any | 100.00 % |" in page
    assert "| `net/rgb.yaml` | Net | takes RGB images |" in page
    assert "| `net/wrong.yaml` | Net | KeyError: 'width' at opengait/modeling/models/net.py:6 |" in page
    assert "have been run" not in page
    write_page(out / "models.md", {})
    assert split_page(out / "models.md")[1] == split_page_text(page)
    (repository / "opengait" / "modeling" / "models" / "net.py").unlink()  # what is measured is kept
    CliRunner().invoke(opengait_configs.main, arguments, catch_exceptions=False)
    assert (out / "models.md").read_text().endswith(split_page_text(page))


def split_page_text(page):
    return page[page.index("## OpenGait's configurations") :]
