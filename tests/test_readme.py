"""README.md: its example runs, its commands and links exist, its figures are those of the commands."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from qgait_ptq.cli.main import COMMANDS
from qgait_ptq.targets.registry import TARGETS
from tests.conftest import make_gaitbase

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import draw_results

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(walkers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    step = len(walkers) // 8
    names = {
        "network": make_gaitbase(),
        "data": [(walkers[i][0], walkers[i][1].subject) for i in range(0, 8 * step, step)],
        "known_sequences": [walkers[i][0] for i in range(4)],
        "silhouettes": np.full((5, 64, 44), 255, np.uint8),
    }
    exec(code, names)
    assert names["embedding"].shape == (16, 16)
    assert (tmp_path / "out" / "model.onnx").exists()
    embedder, gallery = names["embedder"], names["gallery"]
    assert embedder.match(gallery, embedder(walkers[1][0]), top_k=3).indices[0, 0] == 1
    assert names["found"].indices.shape == (1, 3)


def test_every_command_that_it_names_exists():
    named = set(re.findall(r"qgait-ptq ([a-z]+)", README))
    assert named == set(COMMANDS)


def slugs(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_every_relative_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text())
    assert links
    for link in links:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        assert not anchor or anchor in slugs(ROOT / path), link


@pytest.mark.parametrize("page", draw_results.PAGES, ids=lambda page: page.name)
def test_the_table_is_the_one_that_the_command_writes(page):
    rows = draw_results.read_rows(draw_results.ACCURACY, ROOT / "docs" / "results" / "sizes.json")
    assert draw_results.with_table(page.read_text(), rows) == page.read_text()


def test_the_figure_is_the_one_that_the_command_draws():
    rows = draw_results.read_rows(draw_results.ACCURACY, ROOT / "docs" / "results" / "sizes.json")
    drawn = draw_results.draw(rows)
    assert drawn == (ROOT / "docs" / "results" / "results.svg").read_text()
    assert "prefers-color-scheme: dark" in drawn


def test_the_table_has_the_figures_of_the_page_of_accuracies():
    accuracy = (ROOT / "docs" / "accuracy" / "accuracy.md").read_text()
    for widths in draw_results.WIDTHS:
        (line,) = re.findall(rf"^\| {widths} \|.*$", accuracy, re.MULTILINE)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rank1, precision, sqnr = cells[3], cells[9], cells[11]
        assert re.search(rf"^\| {widths} \|.*\| {rank1} \| {precision} \| {sqnr} \|$", README, re.MULTILINE)


def test_the_tables_of_speeds_have_the_figures_of_the_page_of_speeds():
    speed = (ROOT / "docs" / "speed.md").read_text()
    tables = re.findall(r"^\| runtime \|.*?\n\n", README, re.MULTILINE | re.DOTALL)
    headings = ("## VNNI\n", "## AVX2, no VNNI\n")
    for heading, table in zip(headings, tables, strict=True):
        section = speed.split(heading)[1].split("\n## ")[0]
        for title, name in (("ONNX Runtime", "onnxruntime"), ("OpenVINO", "openvino")):
            line = rf"^\| GaitBase \| {name} \| (\w+) \| ([\d.]+) \| ([\d.]+) "
            measured = {
                widths: (ms, faster) for widths, ms, faster in re.findall(line, section, re.MULTILINE)
            }
            row = [title, measured["float"][0]]
            for widths in ("W8A8", "W4A4"):
                milliseconds, faster = measured[widths]
                row += [milliseconds, f"{faster}×"]
            assert f"| {' | '.join(row)} |" in table


def test_the_support_matrix_has_a_column_for_each_target():
    (header,) = re.findall(r"^\| network \|(.*)\|$", README, re.MULTILINE)
    assert {name.strip(" `") for name in header.split("|")} == set(TARGETS)
