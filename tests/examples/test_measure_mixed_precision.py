"""The table of chosen widths says what the runs say."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import measure_mixed_precision as example

from qgait_ptq.errors import ExportError


def run_of(name, seed, precision):
    values = [[precision] * 3 for _ in range(5)]
    measured = {"rank1": values, "ap": values}
    return {
        "name": name,
        "seed": seed,
        "bytes": 459_000,
        "bops_percent": 14.5,
        "cpu_seconds": 70.0,
        "sqnr_db": 9.0,
        "quantized": measured,
        "float": {"rank1": [[90.0] * 3] * 5, "ap": [[80.0] * 3] * 5},
    }


def test_chosen_widths_are_paired_with_uniform_ones_of_the_same_cost(tmp_path):
    runs = [run_of("W3A3", 0, 70.0), run_of("operations of W3A3", 0, 72.0), run_of("W3A3", 1, 60.0)]
    example.write_table(runs, tmp_path)
    uniform, chosen = (tmp_path / "mixed_precision.md").read_text().splitlines()[-2:]
    assert uniform.startswith("| W3A3 | uniform | 2 | 0.459 | 14.5 | 65.00 |")
    assert "| W3A3 | +2.00 [+2.00, +2.00] | +2.00 [+2.00, +2.00] |" in chosen


def test_every_row_that_is_compared_has_its_other(tmp_path):
    names = {variant.name for variant in example.VARIANTS}
    assert all(variant.against in names for variant in example.VARIANTS if variant.against)


def test_a_refused_run_ends_no_experiment(monkeypatch, tmp_path):
    def refuse(variant, seed, work):
        raise ExportError("the file differs")

    monkeypatch.setattr(example, "execute", refuse)
    failed = example.attempt(example.VARIANTS[1], 2, tmp_path)
    assert failed == {"name": "W3A3", "seed": 2, "failure": "the file differs"}
    example.write_table([run_of("W3A3", 0, 70.0), failed], tmp_path)
    text = (tmp_path / "mixed_precision.md").read_text()
    assert "| W3A3 | uniform | 1 |" in text
    assert text.endswith("\n\nRefused: 1 of W3A3.\n")
