"""The documentation: its code runs, its commands exist, its site builds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from qgait_ptq.cli.main import COMMANDS, cli
from tests.conftest import make_gaitbase

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def with_python() -> list[str]:
    return [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", with_python())
def test_the_python_of_a_page_runs_from_top_to_bottom(page, walkers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some = [walkers[i] for i in range(0, len(walkers), len(walkers) // 8)]
    subjects, trials = ("001", "002", "003", "004"), ("nm-01", "nm-05")
    names = {  # what a page speaks of as the reader's own
        "network": make_gaitbase(),
        "pairs": [(sequence, record.subject) for sequence, record in some],
        "silhouettes": np.full((5, 64, 44), 255, np.uint8),
        "known": [sequence for sequence, _ in some[:3]],
        "walks": {(s, t): some[i][0] for i, s in enumerate(subjects) for t in trials},
    }
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("page", ["../README.md", *PAGES])
def test_commands_have_the_options_that_are_shown(page):
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    for line in re.findall(r"^(?:\.venv/bin/)?qgait-ptq (.*)$", text, re.MULTILINE):
        name, *arguments = shlex.split(line, comments=True)
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        command.make_context(name, arguments)  # refuses what the command does not take


def test_examples_that_pages_name_exist():
    for page in PAGES:
        for path in re.findall(r"examples/[a-z_0-9/-]+\.(?:py|pt)", (DOCS / page).read_text()):
            assert (ROOT / path).exists(), f"{page} names {path}"


def test_every_command_is_spoken_of_somewhere():
    text = "\n".join(path.read_text() for path in (*DOCS.glob("*.md"), ROOT / "README.md"))
    assert not [name for name in COMMANDS if f"qgait-ptq {name}" not in text]


def test_the_site_builds_without_a_broken_link_and_loads_nothing_from_outside(tmp_path):
    configuration = DOCS / "site" / "mkdocs.yml"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", configuration, "-d", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    recipe = (tmp_path / "site" / "recipe.html").read_text()
    assert "learning_rate" in recipe
    assert "generated:" not in recipe
    for page in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(
            r"""<(?:script|link|img)[^>]+(?:src|href)=["'](https?:[^"']+)""", page.read_text()
        )
        assert not loaded, page
