"""``--checkpoint-key``: which weights are taken is printed, and kept in the recipe and the report."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from qgait_ptq.cli.inputs import load_network
from qgait_ptq.cli.main import cli
from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.config.recipes import recipe_yaml
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.zoo import gaitbase_small
from qgait_ptq.system.progress import Silent

FACTORY = "qgait_ptq.gait.zoo:gaitbase_small"


class Notes(Silent):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


@pytest.fixture
def checkpoint(tmp_path):
    networks = [gaitbase_small().state_dict() for _ in range(2)]
    torch.save({"state_dict": networks[0], "state_dict_ema": networks[1]}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", *networks


def test_the_choice_is_printed(checkpoint):
    done = CliRunner().invoke(cli, ["inspect", str(checkpoint[0]), "--factory", FACTORY], terminal_width=200)
    text = " ".join(done.output.split())
    assert "weights taken from 'state_dict' of last.ckpt" in text
    assert "to take it, pass --checkpoint-key state_dict_ema" in text


def test_the_key_reaches_the_network_the_report_and_the_recipe(checkpoint, tmp_path):
    path, raw, average = checkpoint
    for key, given in ((None, raw), ("state_dict_ema", average)):
        recipe = build_recipe(path, None, {"factory": FACTORY, "checkpoint_key": key})
        network, about = load_network(recipe.model, Notes())
        assert torch.equal(network.state_dict()["stem.0.weight"], given["stem.0.weight"])
        assert about["checkpoint_key"] == (key or "state_dict")
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe))
    again = build_recipe(None, tmp_path / "recipe.yaml", {})
    assert again.model.checkpoint_key == "state_dict_ema"
    other = build_recipe(None, tmp_path / "recipe.yaml", {"checkpoint_key": "state_dict"})
    assert other.model.checkpoint_key == "state_dict"


def test_a_file_cannot_put_control_characters_into_the_report(tmp_path):
    torch.save({"a\x1b[31m\ud800": gaitbase_small().state_dict()}, tmp_path / "w.pt")
    recipe = build_recipe(tmp_path / "w.pt", None, {"factory": FACTORY})
    _, about = load_network(recipe.model, Notes())
    assert about["checkpoint_key"].isascii()
    assert about["checkpoint_key"].isprintable()


def test_a_misspelt_key_of_a_recipe_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {path: w.pt, checkpoint_keys: a}\n")
    with pytest.raises(ConfigError, match="checkpoint_key"):
        build_recipe(None, tmp_path / "recipe.yaml", {})
