"""The commands beside the figures of the documentation run, and print what stands there."""

import json
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import compare_with_stock
import measure_speed

pytestmark = pytest.mark.slow


def test_the_page_of_speeds_has_a_row_for_each_file(tmp_path, monkeypatch):
    small = {"gaitbase-small": ("GaitBase-small", ("W8A8", "W4A4", "W8A8 input 1"))}
    monkeypatch.setattr(measure_speed, "MEASURED", small)
    monkeypatch.setattr(measure_speed, "STREAMED", (5, 40))
    arguments = ["--out", str(tmp_path), "--rounds", "1"]
    done = CliRunner().invoke(measure_speed.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    page = (tmp_path / "speed.md").read_text()
    rows = re.findall(
        r"^\| GaitBase-small \| (\w+) \| ([^|]+) \| ([\d.]+) \| .* \| (\d+)% \|", page, re.MULTILINE
    )
    kinds = ("float", "W8A8", "W4A4", "W8A8 input 1")
    assert [row[:2] for row in rows] == [(r, kind) for r in ("onnxruntime", "openvino") for kind in kinds]
    assert all(float(milliseconds) > 0 and 0 < int(share) <= 120 for *_, milliseconds, share in rows)
    sizes = [float(size) for size in re.findall(r"(?:5|40): (\d+) MB", page)]
    assert len(sizes) == 2
    assert 0 < sizes[0] <= sizes[1]
    (table,) = json.loads((tmp_path / "speed.json").read_text()).values()
    assert len(table["rows"]) == len(rows)


def test_the_comparison_with_the_stock_quantizer_prints_both():
    arguments = ["--network", "gaitbase-small", "--rounds", "1"]
    done = CliRunner().invoke(compare_with_stock.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    cosines = dict(
        re.findall(
            r"^(float|stock|stock-reduced|qgait_ptq) +[\d.]+ +[\d.]+ +([\d.]+)", done.output, re.MULTILINE
        )
    )
    assert float(cosines["float"]) == 1
    assert float(cosines["stock"]) < float(cosines["qgait_ptq"]) < 1
    assert float(cosines["stock-reduced"]) < float(cosines["qgait_ptq"])
    assert re.search(r"qgait_ptq is [\d.]+ times faster", done.output)
