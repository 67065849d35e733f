"""A notebook in a real kernel, without a terminal and without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")

ROOT = Path(__file__).parents[2]
SETTING_UP = """
import os, sys
for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
    os.environ.pop(name, None)
import numpy as np
import qgait_ptq as qg
from tests.conftest import SHALLOW, make_gaitbase
rng = np.random.default_rng(0)
pairs = [((rng.random((16, 64, 44)) < 0.3).astype(np.uint8), str(number // 2)) for number in range(12)]
assert not sys.stdout.isatty()
"""
WITHOUT_WIDGETS = "sys.modules['ipywidgets'] = None"
QUANTIZING = "result = qg.quantize(make_gaitbase(**SHALLOW), pairs)\nresult"
SHOWING = "page = result.report.show()"


def run(*cells: str) -> list[list[dict[str, Any]]]:
    """The outputs of each cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.fixture(scope="module")
def outputs() -> list[list[dict[str, Any]]]:
    return run(SETTING_UP, WITHOUT_WIDGETS, QUANTIZING, SHOWING)


def test_a_result_is_shown_as_a_table(outputs):
    (shown,) = (output for output in outputs[2] if output["output_type"] == "execute_result")
    assert shown["data"]["text/html"].startswith("<table>")
    assert shown["data"]["text/plain"].startswith("QuantizationResult(W8A8 for onnxruntime")


def test_stages_are_lines_where_ipywidgets_is_missing(outputs):
    lines = [out["data"]["text/plain"].strip() for out in outputs[2] if out["output_type"] == "display_data"]
    assert {"capture …", "ranges …", "export …", "evaluation …"} <= set(lines)
    assert "" not in lines
    assert not any(output["output_type"] == "stream" for output in outputs[2])  # no warning, no error


def test_a_page_is_named_where_no_browser_can_be_opened(outputs):
    (shown,) = outputs[3]
    assert shown["text"].startswith("no browser can be opened here; the page is /")


def test_stages_are_bars_where_ipywidgets_is_installed():
    pytest.importorskip("ipywidgets")
    stage = "with qg.TerminalProgress().stage('ranges', 2) as advance:\n    advance()\n    advance()"
    *_, shown = run("import qgait_ptq as qg", stage)
    assert "application/vnd.jupyter.widget-view+json" in shown[0]["data"]
    assert not any(output["output_type"] in ("stream", "error") for output in shown)
