"""Code that a file names runs only where the command line says so, never where the file says so."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.zoo import gaitbase_small
from tests.cli.forks import run_forked

VICTIM = "victim"
FACTORY = {"factory": "os:system", "arguments": {"command": f"touch {VICTIM}"}}


@pytest.fixture
def folder(tmp_path):
    torch.save(gaitbase_small().state_dict(), tmp_path / "weights.pt")
    torch.save(gaitbase_small(), tmp_path / "module.pt")
    return tmp_path


def run(folder, *arguments, status=2):
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": "200", "HOME": "/tmp"}
    done = run_forked(list(map(str, arguments)), folder, environment)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def recipe(folder, **model):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": {"path": "weights.pt", **model}}))
    return path


@pytest.mark.parametrize("command", ["quantize", "inspect", "evaluate", "sensitivity"])
def test_a_recipe_that_names_code_needs_trust_on_the_command_line(folder, command):
    recipe(folder, **FACTORY, trust_code=True)
    message = run(folder, command, "--recipe", "recipe.yaml")
    assert "factory: os:system" in message
    assert "--trust-code" in message
    assert not (folder / VICTIM).exists()


@pytest.mark.parametrize("name", ["trust_code", "trust_pickle"])
def test_trust_is_not_taken_from_a_recipe(folder, name):
    recipe(folder, path="module.pt", **{name: True})
    assert "--trust-code" in run(folder, "inspect", "--recipe", "recipe.yaml")


def test_an_adapter_and_an_opengait_configuration_are_code_too(folder):
    for extra in ({"adapter": "os:abort"}, {"opengait_config": "gaitbase.yaml"}):
        recipe(folder, factory="qgait_ptq.gait.zoo:gaitbase_small", **extra)
        assert next(iter(extra)) in run(folder, "inspect", "--recipe", "recipe.yaml")


def test_a_recipe_with_a_built_in_network_needs_no_trust(folder):
    path = recipe(folder, factory="qgait_ptq.gait.zoo:gaitbase_small")
    assert build_recipe(None, path, {}).model.factory == "qgait_ptq.gait.zoo:gaitbase_small"
    with pytest.raises(ConfigError, match="runs code"):
        build_recipe(None, recipe(folder, factory="qgait_ptq.gait.zoo:nn.Module"), {})


def test_the_option_that_names_the_same_code_is_trust_enough(folder):
    path = recipe(folder, factory="mynets:make")
    assert build_recipe(None, path, {"factory": "mynets:make"}).model.factory == "mynets:make"


def test_trust_is_recorded_and_repeating_the_run_needs_the_flag(folder):
    path = recipe(folder, path="module.pt")
    trusted = build_recipe(None, path, {"trust_code": True})
    assert trusted.model.trust_code
    path.write_text(yaml.safe_dump(trusted.model_dump(mode="json")))
    assert yaml.safe_load(path.read_text())["model"]["trust_code"] is True
    with pytest.raises(ConfigError, match="--trust-code"):
        build_recipe(None, path, {})
    assert build_recipe(None, path, {"trust_code": True}).model.trust_code


def test_a_factory_must_give_a_module(folder):
    arguments = ("--model", "os:getcwd")
    assert "not a torch.nn.Module" in run(folder, "inspect", "weights.pt", *arguments)


def test_an_exported_program_is_refused_and_loaded_with_trust(folder):
    free = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    example = (torch.zeros(2, 7, 64, 44),)
    program = torch.export.export(gaitbase_small().eval(), example, dynamic_shapes=free)
    torch.export.save(program, folder / "model.pt2")
    for command in ("inspect", "quantize", "evaluate"):
        message = run(folder, command, "model.pt2")
        assert "an exported program" in message
        assert "safetensors" in message
    for option in ("--trust-code", "--trust-pickle"):
        run(folder, "inspect", "model.pt2", option, status=0)
    shutil.copy(folder / "model.pt2", folder / "renamed.pt")
    assert "an exported program" in run(folder, "inspect", "renamed.pt")


def test_a_function_that_makes_the_network_is_refused_for_a_file_that_holds_it(folder):
    message = run(folder, "inspect", "module.pt", "--trust-code", "--factory", "qgait_ptq.gait.zoo:GaitSet")
    assert "pickled module, which holds one network with its code; leave out --factory" in message
    assert len(message.strip().splitlines()) == 1
