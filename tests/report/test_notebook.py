"""What a notebook shows: the table of a result, short texts of objects, pages and progress."""

from __future__ import annotations

import io
import re
import stat
import subprocess
import sys

import pytest
from rich.console import Console

import qgait_ptq as qg
from qgait_ptq.gait import PackedSilhouettes, SequenceRecord, get_protocol, make_test_set
from qgait_ptq.report.result_table import result_html, result_line
from qgait_ptq.report.showing import show_page
from qgait_ptq.report.terminal import TerminalProgress, default_progress, shows_bars
from qgait_ptq.system.progress import Silent
from tests.conftest import SHALLOW, make_gaitbase
from tests.report.test_terminal import ACCURACY

RANKED = {
    "accuracy": {name: {**ACCURACY, "rank1": {"<b>": 91.0, "mean": 90.0}} for name in ("float", "onnx")},
    "comparison": {"onnx": {"rank1": {"mean": 0.0, "low": -1.0, "high": 1.0}}},
    "target": {"name": "onnxruntime"},
    "size_bytes": {"float": 4_000_000, "onnx": 1_000_000},
    "config": {"weight_bits": 4, "activation_bits": 8},
}


@pytest.fixture
def no_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)


def test_a_notebook_shows_the_table_of_a_result_and_its_verdict(eight_bits):
    html = eight_bits._repr_html_()
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", html)
    assert cells[:3] == ["", "float", "ONNX file"]
    assert cells[cells.index("bits") :][:3] == ["bits", "32", "W8A8"]
    assert "mean cosine of" in html


def test_names_in_the_table_are_shown_and_never_interpreted():
    html = result_html(RANKED)
    assert "rank-1 &lt;b&gt;, %" in html
    assert "<b>" not in html


def test_a_result_is_one_line_with_widths_target_size_and_accuracy(eight_bits):
    assert result_line(RANKED) == "W4A8 for onnxruntime, 1.00 MB, mean rank-1 90.00 % (float 90.00 %)"
    size = eight_bits.report.size_bytes["onnx"] / 1e6
    cosine = eight_bits.report.agreement.cosine_mean
    line = f"W8A8 for onnxruntime, {size:.2f} MB, mean cosine {cosine:.4f} to float"
    assert repr(eight_bits) == f"QuantizationResult({line})"
    assert repr(eight_bits.report) == f"Report({line})"


def test_an_embedder_names_its_file_its_runtime_and_its_input(eight_bit_file):
    shown = repr(qg.Embedder(eight_bit_file))
    assert shown == f"Embedder('{eight_bit_file}', onnxruntime: any number of frames of 64×44)"


def test_data_are_counted_and_not_printed(walkers):
    sequence = walkers[0][0]
    assert repr(walkers) == f"GaitDataset({len(walkers)} sequences of 6 identities)"
    assert repr(PackedSilhouettes(sequence)) == f"PackedSilhouettes({list(sequence.shape)})"
    record = SequenceRecord("anna", "nm-01", "090", PackedSilhouettes(sequence))
    assert "load" not in repr(record)
    tests = make_test_set(walkers, get_protocol("casia-b"))
    assert re.fullmatch(r"TestSet\(casia-b: \d+ gallery, probes \d+ nm, \d+ bg, \d+ cl\)", repr(tests))
    counted = f"{walkers.counts} for calibration, {walkers.counts} for testing"
    assert repr(qg.GaitData(walkers, walkers, tests)) == f"GaitData({counted}, {tests!r})"
    assert repr(qg.GaitData(walkers, walkers)) == f"GaitData({counted}, no gallery and probes)"


def test_a_state_says_what_the_stages_have_produced(few_walkers):
    state = qg.prepare(make_gaitbase(**SHALLOW), few_walkers, device="cpu")
    assert repr(state) == "State(GaitBase, W8A8 for onnxruntime; has captured, network)"
    assert all(len(repr(part)) < 500 for part in (state.source, state.captured))
    exported = qg.export(qg.calibrate(state))
    assert repr(exported) == "State(GaitBase, W8A8 for onnxruntime; has captured, network, quantized, file)"
    assert re.fullmatch(r"File\([\d.]+ MB, float model [\d.]+ MB\)", repr(exported.file))


def test_a_stage_shows_its_name():
    assert repr(qg.calibration.SetRanges()) == "SetRanges('ranges')"


def test_a_page_without_a_display_is_named_in_one_line(eight_bits, no_display, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = eight_bits.report.show()
    assert capsys.readouterr().out == f"no browser can be opened here; the page is {path}\n"
    assert path.is_relative_to(tmp_path)
    assert "<h2>Layers</h2>" in path.read_text()
    assert "<h2>Calibration sequences</h2>" not in path.read_text()
    assert "<h2>Calibration sequences</h2>" in eight_bits.show().read_text()


def test_a_page_opens_in_the_browser_of_the_user(tmp_path):
    """A program that writes down what it is asked to open stands in for the browser."""
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    code = "from qgait_ptq.report.showing import show_page\nshow_page('<p>page</p>')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"BROWSER": str(browser), "TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert opened.read_text().startswith(f"file://{tmp_path}/qgait-ptq-")


def test_an_unwritable_temporary_folder_is_an_error_with_a_remedy(no_display, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(qg.QgaitError, match="set TMPDIR"):
        show_page("<p>page</p>")


def test_a_call_from_python_is_silent_outside_notebooks():
    assert isinstance(default_progress(), Silent)


def test_bars_need_a_terminal_or_a_notebook_with_widgets():
    assert shows_bars(Console(force_terminal=True))
    assert not shows_bars(Console(file=io.StringIO()))


def test_notes_and_stages_of_python_calls_go_to_standard_output_if_wanted(capsys):
    progress = TerminalProgress()
    with progress.stage("ranges", 2) as advance:
        advance()
    progress.note("done")
    assert capsys.readouterr().out == "done\n"
