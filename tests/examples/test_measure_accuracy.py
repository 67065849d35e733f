"""The table of accuracies says what the runs say."""

import json
import sys
from pathlib import Path

from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import measure_accuracy


def run_of(bits, seed, file):
    return {
        "bits": bits,
        "seed": seed,
        "float": {"mean_rank1": 90.0, "map": 80.0},
        "file": {"mean_rank1": file, "map": 79.0 - seed},
        "float_gallery": {"mean_rank1": file + 0.2, "map": 79.5},
        "sqnr_db": 14.0 + seed,
        "seconds": 100.0,
        "stages": {},
    }


def test_means_and_the_worst_seed_stand_in_the_table_and_nothing_is_measured_twice(tmp_path):
    runs = [
        run_of("W4A4", 0, 89.9),
        run_of("W4A4", 1, 89.5),
        run_of("W8A8", 0, 90.0),
        run_of("W8A8", 1, 90.0),
    ]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, runs)) + "\n")
    arguments = ["--out", str(tmp_path), "--seeds", "2", "--bits", "W4A4", "--bits", "W8A8"]
    done = CliRunner().invoke(measure_accuracy.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    rows = (tmp_path / "accuracy.md").read_text().splitlines()[-2:]
    begin, end = "90.00 | 0.00 | 0.00 | 0.1 | 90.20 |", "80.00 | 78.50 | 79.50 | 14.5 |"
    assert rows[0].startswith(f"| W8A8 | 2 | 90.00 | {begin} {end}")
    begin = "89.70 | 0.30 | 0.50 | 0.5 | 89.90 |"
    assert rows[1].startswith(f"| W4A4 | 2 | 90.00 | {begin} {end}")
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4
