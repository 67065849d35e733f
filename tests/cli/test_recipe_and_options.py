"""Options beside a recipe: what they replace, what they add to, and what stays."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from qgait_ptq.capture.own_code import runs_code
from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.config.schema import ModelSource
from qgait_ptq.errors import ConfigError
from tests.cli.test_cli import SMALL, assert_refused, run
from tests.conftest import SHALLOW, make_gaitbase


@pytest.fixture
def recipe(tmp_path):
    """A recipe with arguments, a goal, and the hash of its model."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {path: weights.pt, sha256: abc, arguments: {width: 8, dilation: 2}}\n"
        "data: {root: data, unlabelled: more}\n"
        "quantization: {max_drop: 1.0, finetune: {enabled: true}}\n"
    )
    return path


def test_an_argument_of_the_network_is_added_to_those_of_the_recipe(recipe):
    built = build_recipe(None, recipe, {"arguments": ("width=4", "rate=1e-3", "mode=on")})
    assert built.model.arguments == {"width": 4, "dilation": 2, "rate": 0.001, "mode": "on"}


@pytest.mark.parametrize(
    ("option", "value"), [("budget", "size=0.6MB"), ("target_accuracy", -2.0), ("max_drop", 3.0)]
)
def test_a_goal_replaces_the_goal_of_the_recipe(option, value, recipe):
    config = build_recipe(None, recipe, {option: value}).quantization
    goals = {name for name in ("budget", "target_accuracy", "max_drop") if getattr(config, name) is not None}
    assert goals == {option}
    assert build_recipe(None, recipe, {}).quantization.max_drop == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": "size=0.6MB", "weight_bits": 4},
            "--weight-bits would have no effect: the budget chooses",
        ),
        ({"target_accuracy": -1.0, "weight_bits": 8}, "--weight-bits would have no effect: target_accuracy"),
        (
            {"budget": "bops=30%", "weight_bits": 4, "activation_bits": 4},
            "--weight-bits and --activation-bits would have no effect: the budget chooses the widths of all "
            "weights and inputs",
        ),
        ({"budget": "bops=30%", "bits": 4}, "--bits would have no effect"),
        ({"budget": "size=0.6MB", "bits": 4, "activation_bits": 8}, "--bits would have no effect"),
        ({"budget": "bops=30%", "edge_bits": 4, "input_bits": 1}, "--edge-bits would have no effect"),
        ({"budget": "size=0.6MB", "bits": 4}, None),
        ({"budget": "size=0.6MB", "activation_bits": 4, "edge_bits": 4}, None),
        ({"budget": "bops=30%", "edge_bits": 4}, None),
        ({"max_drop": 1.0, "bits": 3, "weight_bits": 4, "edge_bits": 4}, None),
        ({"bits": 4, "weight_bits": 3, "edge_bits": 3}, None),
    ],
)
def test_widths_that_a_goal_overrides_are_refused_as_options(options, message, recipe):
    if message is None:
        build_recipe(None, recipe, options)
    else:
        with pytest.raises(ConfigError, match=re.escape(message)):
            build_recipe(None, recipe, options)


def test_widths_of_a_recipe_may_be_overridden_by_a_goal(recipe):
    """The run notes them."""
    recipe.write_text("model: {path: weights.pt}\nquantization: {weight_bits: 4, edge_bits: 4}\n")
    assert build_recipe(None, recipe, {"budget": "bops=30%"}).quantization.weight_bits == 4


def test_a_model_that_is_named_need_not_be_the_file_of_the_recipe(recipe, tmp_path):
    """Also at the same path: the network can have been trained again."""
    assert build_recipe(None, recipe, {}).model.sha256 == "abc"
    assert build_recipe(Path("weights.pt"), recipe, {}).model.sha256 is None


def test_fine_tuning_can_be_turned_off_although_the_recipe_has_unlabelled_data(recipe, tmp_path):
    torch.save(make_gaitbase(**SHALLOW).state_dict(), tmp_path / "weights.pt")
    options = (
        "--recipe",
        recipe,
        "--no-finetune",
        "--factory",
        "qgait_ptq.gait.zoo:GaitBase",
        "--out",
        "out",
    )
    done = run("quantize", *options, cwd=tmp_path)
    assert "--unlabelled" not in done.stderr
    added = run("quantize", *options, "--unlabelled", tmp_path, cwd=tmp_path)
    assert_refused(added, "--unlabelled is used by fine-tuning only; add --finetune")


@pytest.mark.parametrize("name", ["root", "partition", "unlabelled"])
def test_paths_that_are_not_utf_8_are_refused_before_the_run(name, tmp_path):
    """They could not be written into the report at its end."""
    bad = tmp_path / os.fsdecode(b"dat\xe9")
    with pytest.raises(ConfigError, match="the path is not UTF-8"):
        build_recipe(tmp_path / "weights.pt", None, {name: bad})
    with pytest.raises(ConfigError, match="the path is not UTF-8"):
        build_recipe(bad, None, {})


def test_a_plan_refuses_what_the_run_would_refuse(tmp_path):
    torch.save(make_gaitbase(**SHALLOW).state_dict(), tmp_path / "weights.pt")
    for option in (("--raw",), ("--partition", "p.json"), ("--cut-columns", 0)):
        done = run("quantize", "weights.pt", *SMALL, *option, "--dry-run", cwd=tmp_path)
        assert_refused(done, option[0])


def test_without_arguments_the_help_has_its_lines():
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")
    assert len(done.stderr.splitlines()) > 10


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({}, False),
        ({"factory": "qgait_ptq.gait.zoo:GaitBase"}, False),
        ({"factory": "mynets:Net"}, True),
        ({"factory": "qgait_ptq.gait.zoo:load"}, True),
        ({"adapter": "opengait", "opengait_config": "net.yaml"}, True),
        ({"trust_code": True}, True),
    ],
)
def test_the_command_of_a_page_trusts_code_where_the_recipe_names_some(settings, runs):
    assert runs_code(ModelSource.model_validate({"path": "weights.pt", **settings})) is runs


def test_the_longest_sequence_of_a_file_is_that_of_its_report(walkers_root, tmp_path):
    """Sequences are cut off after as many frames as in the run, unless the user says otherwise."""
    torch.save(make_gaitbase(**SHALLOW).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{path: weights.pt}}\ndata: {{root: {walkers_root}, longest: 3}}\n"
    )
    options = ("--recipe", "recipe.yaml", "--effort", "quick", "--json")
    made = run("quantize", "weights.pt", *SMALL, *options, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert report["data"]["longest"] == 3
    assert report["toolkit"]["device"] in ("cpu", "cuda")
    done = run("evaluate", "qgait-out/model.onnx", "--data", walkers_root, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["rank1"] == pytest.approx(report["accuracy"]["onnx"]["rank1"])


def test_a_probe_set_without_a_match_ends_no_run(walkers_root, tmp_path):
    """All of its ranks are 0, and the other probe sets are measured."""
    shutil.copytree(walkers_root, tmp_path / "data")
    torch.save(make_gaitbase(**SHALLOW).state_dict(), tmp_path / "weights.pt")
    partition = json.loads((tmp_path / "data" / "partition.json").read_text())
    alone, *others = partition["TEST_SET"]
    for person in partition["TEST_SET"]:
        for condition in (tmp_path / "data" / person).iterdir():
            if condition.name.startswith("cl") != (person == alone):
                shutil.rmtree(condition)
    done = run("evaluate", "weights.pt", *SMALL, "--data", "data", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = json.loads(done.stdout)
    assert accuracy["rank1"]["cl"] == accuracy["rank5"]["cl"] == accuracy["rank10"]["cl"] == 0
    assert accuracy["rank5"]["nm"] > 0
    assert others


@pytest.mark.parametrize(("columns", "options"), [(32, []), (50, ["--height", 100])])
def test_inspect_refuses_a_cut_that_leaves_no_column(columns, options, tmp_path):
    path = tmp_path / "recipe.yaml"
    data = f"data: {{root: data, cut_columns: {columns}}}"
    model = Path(__file__).parents[2] / "examples" / "models" / "gaitbase-small.pt"
    path.write_text(f"model: {{path: {model}}}\n{data}\n")
    refused = run("inspect", "--recipe", path, *options)
    assert_refused(refused, f"data.cut_columns is {columns}: nothing is left of frames")
    assert "--width" in refused.stderr
