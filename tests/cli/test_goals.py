"""Budgets, dry runs, logs, sensitivity and comparisons on the command line."""

from __future__ import annotations

import json
import os

import pytest
import torch

from qgait_ptq.report.comparing import compare_reports, comparison_figures, render_comparison
from qgait_ptq.report.reading import read_report
from tests.cli.forks import run_forked
from tests.cli.test_cli import SMALL, assert_refused, run
from tests.conftest import SHALLOW, make_gaitbase


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "weights.pt"
    torch.save(make_gaitbase(**SHALLOW).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def logged(checkpoint, walkers_root, tmp_path_factory):
    """A run with JSON on stdout and a log."""
    folder = tmp_path_factory.mktemp("logged")
    done = run(
        *("quantize", checkpoint, *SMALL, "--data", walkers_root, "--calibration-sequences", 8),
        *("--json", "--log-file", folder / "run.log", "--out", folder / "out"),
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_json_alone_is_on_stdout(logged):
    folder, done = logged
    assert json.loads(done.stdout) == json.loads((folder / "out" / "report.json").read_text())
    assert "rank-1 mean" in done.stderr


def test_the_log_has_every_stage_with_its_time(logged):
    folder, _ = logged
    log = (folder / "run.log").read_text()
    stages = json.loads((folder / "out" / "report.json").read_text())["seconds"]
    for stage in stages:
        assert f"  {stage}: begins" in log
    assert all(line[:4].isdigit() for line in log.splitlines())


def test_a_log_that_cannot_be_written_is_refused(checkpoint, walkers_root, tmp_path):
    done = run(
        *("quantize", checkpoint, *SMALL, "--data", walkers_root, "--out", tmp_path / "out"),
        *("--log-file", tmp_path / "no" / "such.log"),
    )
    assert_refused(done, "the log cannot be written")


def test_a_dry_run_shows_the_plan_and_writes_nothing(checkpoint, walkers_root, tmp_path):
    arguments = ("quantize", checkpoint, *SMALL, "--bits", 4, "--data", walkers_root, "--dry-run")
    done = run(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for text in (
        "blocks.1.conv2",
        "W4A4",
        "estimated file size",
        "estimated time on this machine",
        "nothing was quantized",
    ):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []
    expected = json.loads(run(*arguments, "--json").stdout)
    assert expected["file_bytes"] > 20_000
    assert set(expected["seconds"]) >= {"ranges", "IDC", "export", "evaluation"}


def test_the_expected_size_is_about_right(logged, checkpoint, walkers_root):
    folder, _ = logged
    dry = run("quantize", checkpoint, *SMALL, "--data", walkers_root, "--dry-run", "--json")
    size = (folder / "out" / "model.onnx").stat().st_size
    assert json.loads(dry.stdout)["file_bytes"] == pytest.approx(size, rel=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "0.6MB"), "not a budget such as size=0.6MB or bops=40%"),
        (("--budget", "size=much MB"), "not a budget such as size=0.6MB or bops=40%"),
        (("--budget", "bops=140%"), "less than or equal to 100"),
        (("--budget", "size=1MB", "--max-drop", 1), "exclude each other"),
        (("--target-accuracy", 0.5), "less than or equal to 0"),
        (("--max-drop", -1), "greater than or equal to 0"),
        (("--budget", "size=0.001MB"), "cannot be met: the smallest file for target onnxruntime has"),
    ],
)
def test_goals_that_cannot_be_met_or_make_no_sense_are_refused(
    options, message, checkpoint, walkers_root, tmp_path
):
    out = tmp_path / "out"
    few = ("--calibration-sequences", 6)
    done = run("quantize", checkpoint, *SMALL, "--data", walkers_root, "--out", out, *few, *options)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not out.exists()


def sensitivity(checkpoint, walkers_root):
    return ("sensitivity", checkpoint, *SMALL, "--data", walkers_root, "--sequences", 6)


def test_sensitivity_prints_a_table_and_draws_it(checkpoint, walkers_root, tmp_path):
    picture = tmp_path / "sensitivity.svg"
    arguments = (*sensitivity(checkpoint, walkers_root), "--widths", "2,8")
    done = run(*arguments, "--plot", picture, "--resume", tmp_path / "states")
    assert done.returncode == 0, done.stderr
    assert "blocks.1.conv2" in done.stdout
    assert picture.read_text().count("<text") > 20
    assert "var(--" not in picture.read_text()
    again = json.loads(run(*arguments, "--resume", tmp_path / "states", "--json").stdout)
    worst = max(again, key=lambda entry: entry["distance_error"])
    assert worst["bits"] == 2


@pytest.mark.slow
def test_states_of_another_measurement_are_refused(checkpoint, walkers_root, tmp_path):
    arguments = (*sensitivity(checkpoint, walkers_root), "--resume", tmp_path / "states")
    assert run(*arguments, "--widths", "8").returncode == 0
    assert_refused(run(*arguments, "--widths", "4"), "belongs to a run with other settings")


def test_a_picture_that_cannot_be_drawn_is_refused_before_measuring(checkpoint, tmp_path):
    done = run("sensitivity", checkpoint, *SMALL, "--plot", tmp_path / "no" / "such.svg")
    assert_refused(done, "the folder does not exist; create it, or pass another --plot")


def test_widths_that_are_none_are_refused(checkpoint):
    assert_refused(
        run("sensitivity", checkpoint, "--widths", "4,16"), "not a list of widths from 2 to 8 bits"
    )


def test_compare_tells_results_apart(logged, tmp_path):
    folder, _ = logged
    out = folder / "out"
    done = run("compare", out, out, "--html", tmp_path / "compared.html")
    assert done.returncode == 0, done.stderr
    assert "W8A8" in done.stdout
    assert (tmp_path / "compared.html").read_text().count("<svg") == 2
    rows = json.loads(run("compare", out, "--json").stdout)
    assert rows[0]["megabytes"] == pytest.approx((out / "model.onnx").stat().st_size / 1e6, rel=0.01)


def test_compare_says_which_file_is_that_of_a_submodule(logged, tmp_path):
    """Its accuracy is that of the whole network; its size and time are not."""
    folder, _ = logged
    (tmp_path / "part").mkdir()
    report = json.loads((folder / "out" / "report.json").read_text())
    report["model"]["submodule"] = {"name": "blocks", "inputs": []}
    (tmp_path / "part" / "report.json").write_text(json.dumps(report))
    rows = compare_reports({"whole": read_report(folder / "out"), "part": read_report(tmp_path / "part")})
    assert [row.name for row in rows] == ["whole", "part (blocks alone)"]
    for figure in comparison_figures(rows):
        assert "whole" in figure.svg
        assert "part" not in figure.svg
    page = render_comparison(rows, "walkers")
    assert "The fronts leave submodules out." in page
    assert "part (blocks alone)" in page
    assert "leave submodules out" not in render_comparison(rows[:1], "walkers")
    assert comparison_figures(rows[1:]) == []
    assert "Fronts" not in render_comparison(rows[1:], "walkers")


def test_compare_refuses_what_is_no_result_or_not_comparable(logged, tmp_path):
    folder, _ = logged
    assert_refused(run("compare", folder / "out", tmp_path), "not a result folder of quantize")
    other = tmp_path / "other"
    other.mkdir()
    report = json.loads((folder / "out" / "report.json").read_text())
    report["data"]["test_sequences"] = 3
    (other / "report.json").write_text(json.dumps(report))
    assert_refused(run("compare", folder / "out", other), "tested on different data")
    del report["agreement"]
    (other / "report.json").write_text(json.dumps(report))
    assert_refused(run("compare", other), "written by another version")


def test_a_terminal_of_forty_columns_is_enough(logged):
    folder, _ = logged
    environment = {**os.environ, "COLUMNS": "40", "NO_COLOR": "1"}
    for arguments in (("compare", folder / "out"), ("targets",), ("inspect", "--against", folder / "out")):
        done = run_forked(list(map(str, arguments)), None, environment)
        assert done.returncode == 0, done.stderr
        assert max(len(line) for line in done.stdout.splitlines()) <= 40
        assert "\x1b" not in done.stdout
