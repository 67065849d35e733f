"""The documentation: code runs, commands and files exist, pictures match the code, the site builds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import yaml

from qgait_ptq.capture.trace import capture
from qgait_ptq.cli.main import COMMANDS, cli
from qgait_ptq.pipeline.preparing import LEARNING, KeepAccuracy
from qgait_ptq.pipeline.quantize import STAGES
from qgait_ptq.report.schema import Report
from tests.conftest import SHALLOW, make_gaitbase
from tests.test_architecture import ORDER

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
    chosen = (walkers[i] for i in range(0, len(walkers), len(walkers) // 8))
    some = [(sequence[:16], record) for sequence, record in chosen]
    subjects, trials = ("001", "002", "003", "004"), ("nm-01", "nm-05")
    names = {  # what a page speaks of as the reader's own
        "network": make_gaitbase(**SHALLOW),
        "pairs": [(sequence, record.subject) for sequence, record in some],
        "silhouettes": np.full((5, 64, 44), 255, np.uint8),
        "known": [sequence for sequence, _ in some[:3]],
        "walks": {(s, t): some[i][0] for i, s in enumerate(subjects) for t in trials},
    }
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)


class OtherConvention(torch.nn.Module):
    """Takes frames of one channel and lengths, gives a dictionary."""

    def __init__(self):
        super().__init__()
        self.inner = make_gaitbase()

    def forward(self, frames, lengths):
        assert lengths is None
        return {"embeddings": self.inner(frames.squeeze(2))}


def test_the_adapter_brings_a_network_to_the_convention():
    names = {"nn": torch.nn}
    (code,) = (b for b in blocks("own-network.md", "python") if b.startswith("class MyAdapter"))
    exec(code, names)
    network = names["MyAdapter"](OtherConvention().eval())
    silhouettes = torch.rand(2, 5, 64, 44)
    torch.testing.assert_close(
        capture(network, (64, 44)).graph_module(silhouettes), make_gaitbase()(silhouettes)
    )


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


def picture(page: str) -> list[str]:
    """The names in the boxes of a page's first diagram, from top to bottom."""
    return [name.strip() for name in re.findall(r"^│ (.+?)  ", blocks(page, "text")[0], re.MULTILINE)]


def test_the_picture_of_the_architecture_has_all_packages_in_their_order():
    assert picture("architecture.md") == list(ORDER)


def test_the_picture_of_the_pipeline_has_all_stages_in_their_order():
    names = []
    for stage in STAGES:
        names.append(stage.name)
        if isinstance(stage, KeepAccuracy):
            names += [inner.name for inner in LEARNING]
    assert picture("pipeline.md") == names


def test_files_that_pages_name_exist():
    bases = (ROOT, ROOT / "qgait_ptq", DOCS, ROOT / "tests", ROOT / "qgait_ptq" / "pipeline")
    for page in ("architecture.md", "method.md", "../CONTRIBUTING.md"):
        text = (DOCS / page).read_text()
        for path in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.(?:py|md|jsonl)|(?:[a-z_]+/)+)`", text):
            assert any((base / path).exists() for base in bases), f"{page} names {path}"


def test_make_has_the_commands_that_are_shown():
    makefile = (ROOT / "Makefile").read_text()
    pages = [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    named = {
        name
        for page in pages
        for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert {"check", "test", "test-slow"} <= named
    assert not [name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)]


def test_the_navigation_has_five_parts_and_every_page():
    parts = yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text())["nav"]
    assert [name for part in parts for name in part] == [
        "Get started",
        "Guides",
        "Concepts",
        "Results",
        "Reference",
    ]
    pages = {
        path for part in parts for entries in part.values() for entry in entries for path in entry.values()
    }
    assert pages == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_the_glossary_explains_each_word_once():
    words = re.findall(r"^\| ([^|]+) \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    words = [word for word in words if word not in ("word", "---")]
    assert len(words) == len(set(words))
    named = {
        *("simulation", "integer reference", "part", "chunk", "submodule", "target", "runtime", "stage"),
        *("state", "pass", "parity", "agreement", "IDC", "pair sum", "gallery", "probe", "observer"),
        *("range", "scale", "zero-point", "W4A4"),
    }
    assert named <= set(words)


@pytest.mark.slow  # `make docs` builds it in continuous integration, too
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
    report = (tmp_path / "site" / "report.html").read_text()
    assert all(f"<code>{key}</code>" in report for key in Report.__annotations__)
    for page in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(
            r"""<(?:script|link|img)[^>]+(?:src|href)=["'](https?:[^"']+)""", page.read_text()
        )
        assert not loaded, page
