"""A network of a code base with OpenGait's habits, as its users have it: trainer, checkpoint and yaml.

The code base is written here; it has the conventions that matter: a constructor that wants a trainer,
networks made by ``build_network``, a package that imports all of them, and a classifier that inference does
not need.
"""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from tests.cli.test_cli import assert_refused, run

BASE_MODEL = """
import torch.nn as nn
from utils import message
from a_logger_that_is_not_installed.boards import SummaryWriter
class BaseModel(nn.Module):
    def __init__(self, cfgs, training):
        raise RuntimeError("wants a process group, a GPU and data")
    def get_backbone(self, cfg):
        width = cfg["channels"]
        return nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
"""
BASELINE = """
import torch
from ..base_model import BaseModel
class Baseline(BaseModel):
    def build_network(self, model_cfg):
        self.Backbone = self.get_backbone(model_cfg["backbone_cfg"])
        channels, parts = model_cfg["backbone_cfg"]["channels"], model_cfg["parts"]
        self.FCs = torch.nn.Module()
        self.FCs.fc_bin = torch.nn.Parameter(torch.randn(parts, channels, 8))
        self.BNNecks = torch.nn.Module()
        self.BNNecks.fc_bin = torch.nn.Parameter(torch.randn(parts, 8, model_cfg["class_num"]))
    def forward(self, inputs):
        ipts, labs, _, _, seqL = inputs
        sils = ipts[0]
        if len(sils.size()) == 4:
            sils = sils.unsqueeze(2)
        n, s, c, h, w = sils.size()
        outs = torch.relu(self.Backbone(sils.reshape(-1, c, h, w)))
        outs = outs.reshape(n, s, *outs.shape[1:]).max(1)[0]
        feat = outs.reshape(n, outs.size(1), self.FCs.fc_bin.size(0), -1).amax(-1)
        embed = feat.permute(2, 0, 1).contiguous().matmul(self.FCs.fc_bin)
        logits = embed.matmul(self.BNNecks.fc_bin)
        return {
            "training_feat": {"softmax": {"logits": logits, "labels": labs}},
            "inference_feat": {"embeddings": embed.permute(1, 2, 0).contiguous()},
        }
"""


@pytest.fixture(scope="module")
def code_base(tmp_path_factory):
    root = tmp_path_factory.mktemp("code") / "OpenGait"
    models = root / "opengait" / "modeling" / "models"
    models.mkdir(parents=True)
    (root / "opengait" / "utils.py").write_text("message = None\n")
    (models.parent / "base_model.py").write_text(BASE_MODEL)
    (models / "__init__.py").write_text(
        "raise ImportError('a dependency of a network that nobody asked for')\n"
    )
    (models / "baseline.py").write_text(BASELINE)
    weights = {
        "Backbone.0.weight": torch.randn(4, 1, 3, 3),
        "Backbone.1.weight": torch.rand(4) + 0.5,
        "Backbone.1.bias": torch.zeros(4),
        "Backbone.1.running_mean": torch.zeros(4),
        "Backbone.1.running_var": torch.ones(4),
        "FCs.fc_bin": torch.randn(16, 4, 8),
        "BNNecks.fc_bin": torch.randn(16, 8, 74),
    }
    torch.save({"model": weights, "optimizer": {"state": {}}, "iteration": 60000}, root / "checkpoint.pt")
    config = {
        "data_cfg": {"dataset_name": "OUMVLP"},
        "evaluator_cfg": {
            "metric": "cos",
            "transform": [{"type": "BaseSilCuttingTransform"}],
            "sampler": {"sample_type": "all_ordered", "frames_all_limit": 500},
        },
        "model_cfg": {
            "model": "Baseline",
            "backbone_cfg": {"channels": 4},
            "parts": 16,
            "class_num": 74,
        },
    }
    (root / "baseline.yaml").write_text(yaml.safe_dump(config))
    return root


def test_checkpoint_and_configuration_are_enough(code_base):
    done = run("inspect", "checkpoint.pt", "--opengait-config", "baseline.yaml", "--json", cwd=code_base)
    assert done.returncode == 0, done.stderr
    layers = {layer["name"]: layer for layer in json.loads(done.stdout)}
    # The classifier is not part of the deployed network, and the adapter around it has no name here.
    assert set(layers) == {"Backbone.0", "FCs"}
    named = run(
        *("inspect", "checkpoint.pt", "--model", "opengait:Baseline"),
        *("--opengait-config", "baseline.yaml", "--json"),
        cwd=code_base,
    )
    assert named.stdout == done.stdout


def test_a_part_is_named_as_in_the_network_without_the_adapter(code_base):
    options = ("--opengait-config", "baseline.yaml", "--capture-submodule", "Backbone", "--json")
    done = run("inspect", "checkpoint.pt", *options, cwd=code_base)
    assert [layer["name"] for layer in json.loads(done.stdout)] == ["Backbone.0"], done.stderr


@pytest.mark.slow
def test_protocol_and_metric_come_from_the_configuration_unless_said_otherwise(code_base, walkers_root):
    def quantize(*more):
        out = code_base / "out"
        done = run(
            *("quantize", "checkpoint.pt", "--opengait-config", "baseline.yaml", "--no-idc"),
            *("--data", walkers_root, "--out", out, *more),
            cwd=code_base,
        )
        return done, out

    refused, out = quantize()
    assert_refused(refused, "oumvlp")  # walkers have CASIA-B's walks
    assert not out.exists()
    done, out = quantize("--protocol", "casia-b")
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert written["data"]["metric"] == "cosine"
    assert written["data"]["longest"] == 500
    assert written["model"]["opengait_config"] == str(code_base / "baseline.yaml")
    recipe = ("--recipe", out / "recipe.yaml", "--trust-code")
    again = run("quantize", *recipe, "--out", code_base / "again", cwd=code_base)
    assert again.returncode == 0, again.stderr
    files = [(folder / "model.onnx").read_bytes() for folder in (out, code_base / "again")]
    assert files[0] == files[1]


def test_each_wrong_input_is_one_line(code_base, tmp_path):
    for arguments, message in (
        (("--model", "opengait:Baseline"), "--opengait-config"),
        (("--opengait-config", "nothing.yaml"), "cannot be read"),
        (("--opengait-config", "baseline.yaml", "--model", "mynets:Other"), "opengait:CLASS"),
        (("--opengait-config", "baseline.yaml", "--model", "opengait:GaitSet"), "no network 'GaitSet'"),
    ):
        assert_refused(run("inspect", "checkpoint.pt", *arguments, cwd=code_base), message)
    elsewhere = ("--opengait-config", code_base / "baseline.yaml")
    assert_refused(run("inspect", code_base / "checkpoint.pt", *elsewhere, cwd=tmp_path), "PYTHONPATH")
    values = yaml.safe_load((code_base / "baseline.yaml").read_text())
    for change, message in (
        ({"model_cfg": {"model": "Baseline"}}, "check that the file belongs to this network"),
        ({"model_cfg": {"parts": 16}}, "model_cfg.model is missing"),
        ({"evaluator_cfg": {"metric": "hamming"}}, "'hamming'"),
        ({"model_cfg": {**values["model_cfg"], "parts": 8}}, "do not fit the network"),
    ):
        path = code_base / "changed.yaml"
        path.write_text(yaml.safe_dump({**values, **change}))
        done = run("inspect", "checkpoint.pt", "--opengait-config", path, cwd=code_base)
        assert_refused(done, message)
