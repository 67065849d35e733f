"""Help: every command has an example, and every example does what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qgait_ptq.cli.main import COMMANDS
from tests.cli.forks import COMMAND, run_forked
from tests.cli.test_cli import run

ROOT = Path(__file__).parents[2]
NETWORK = """
from tests.conftest import make_gaitbase as GaitBase
"""
# What is added to an example so that it takes seconds; the last of two values of an option wins.
QUICKER = {
    "quantize": "--data CASIA-B --no-idc --calibration-sequences 6 --float-file",
    "evaluate": "--data CASIA-B",
    "sensitivity": "--data CASIA-B --widths 4 --sequences 6",
    "bench": "--rounds 2",
    "verify": "--sequences 1 --frames 4",  # emulation is slow
    "walkers": "--identities 2",
}


def examples(name: str) -> list[str]:
    """Example commands of a command's help, continuation lines joined."""
    text = run(name, "--help").stdout
    block = re.search(r"Examples?:\n(.*?)\n\n", text, flags=re.DOTALL)
    assert block, f"{name} --help has no example"
    joined = re.sub(r"\\\n\s*", "", block[1])
    return [line.strip() for line in joined.splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_with_options_that_it_has(name):
    text = run(name, "--help").stdout
    for example in examples(name):
        assert example.startswith(f"qgait-ptq {name}")
        for option in re.findall(r"--[a-z-]+", example):
            assert option in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory, walkers_root):
    path = tmp_path_factory.mktemp("examples")
    (path / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(walkers_root, path / "CASIA-B")
    shutil.copy(walkers_root / "partition.json", path / "CASIA-B.json")
    (path / "mynets.py").write_text(NETWORK)
    code = "import torch; from tests.conftest import make_gaitbase; "
    code += f"torch.save(make_gaitbase().state_dict(), {str(path / 'weights.pt')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return path


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(folder):
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "HOME": str(folder)}
    (folder / ".local/share/bash-completion/completions").mkdir(parents=True)
    for name in COMMANDS:
        for example in examples(name):
            command, redirect, target = example.partition(" > ")
            words = [COMMAND, *shlex.split(command)[1:]]
            if "--recipe" not in words:
                words += shlex.split(QUICKER.get(name, ""))
            done = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{example}\n{done.stderr}"
            if redirect:
                (folder / target.replace("~/", "")).write_text(done.stdout)
    for written in (
        "qgait-out/report.html",
        "again/model.onnx",
        "sensitivity.svg",
        "compared.html",
        "embeddings.npz",
        "walkers.png",
    ):
        assert (folder / written).stat().st_size > 500
    assert (folder / "again/model.onnx").read_bytes() == (folder / "casia-w4a8/model.onnx").read_bytes()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_script_that_completes(shell):
    assert "_QGAIT_PTQ_COMPLETE" in run("completion", shell).stdout


def test_completion_knows_commands_and_options():
    for words, wanted in (("qgait-ptq comp", "compare"), ("qgait-ptq quantize --max", "--max-drop")):
        environment = {
            **os.environ,
            "_QGAIT_PTQ_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = run_forked([], None, environment)
        assert wanted in done.stdout


def test_help_fits_a_narrow_terminal():
    environment = {**os.environ, "COLUMNS": "40"}
    for name in COMMANDS:
        done = run_forked([name, "--help"], None, environment)
        assert done.returncode == 0, done.stderr
        prose = [
            line
            for line in done.stdout.splitlines()
            if not line.startswith("    ") and "qgait-ptq" not in line
        ]
        assert done.stdout
        assert max(map(len, prose)) <= 80
