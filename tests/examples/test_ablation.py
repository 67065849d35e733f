"""The ablation: its rows are valid, its runs are real, its table says what the runs say."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import ablation  # noqa: E402
import ablation_runs  # noqa: E402
import ablation_tables  # noqa: E402
import ablation_variants  # noqa: E402

from qgait_ptq.config.recipes import parse  # noqa: E402
from qgait_ptq.config.schema import QuantConfig  # noqa: E402

CHECKPOINTS = {"gaitbase-small": str(EXAMPLES / "models" / "gaitbase-small.pt")}
VARIANTS = (
    *ablation_variants.MAIN,
    *ablation_variants.ALTERNATIVES,
    *ablation_variants.CURVE,
    *(variant for variant in ablation_variants.FINETUNING if variant not in ablation_variants.MAIN),
)


def test_rows_have_names_of_their_own_valid_settings_and_a_row_to_compare_with():
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    for variant in VARIANTS:
        parse(QuantConfig, {"weight_bits": 4, **variant.settings}, variant.name)
        assert variant.against is None or variant.against in names
    assert {v.labels for v in VARIANTS} == {"true", "shuffled", "none", ablation_variants.REFIT_SHUFFLED}


def test_all_networks_and_widths_are_planned_with_keys_of_their_own():
    checkpoints = CHECKPOINTS | {"gaitset-small": "x"}
    jobs = ablation_variants.plan_jobs(checkpoints, seeds=3)
    assert len({job.key for job in jobs}) == len(jobs)
    main = {(job.network, job.bits) for job in jobs if job.variant in ablation_variants.MAIN}
    assert len(main) == 2 * len(ablation_variants.WIDTHS)
    assert {job.seed for job in jobs} == {0, 1, 2}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(ablation_runs, "TEST_IDENTITIES", 2)
    monkeypatch.setattr(ablation_runs, "TEST_VIEWS", 1)
    monkeypatch.setattr(ablation_runs, "DISTRACTORS", 3)
    monkeypatch.setattr(ablation_runs, "CALIBRATION_IDENTITIES", 9)
    monkeypatch.setattr(ablation_runs, "POOL_WALKERS", 2)
    ablation_runs.read_walkers.cache_clear()
    few = {"calibration_frames": 6, "correction_frames": 6, "calibration_sequences": 18}
    idc = {"steps": 2, "identities": 2, "sequences": 2}
    finetune = {"block_steps": 1, "steps": 1}
    changed = {**ablation_runs.COMMON, **few, "idc": idc, "finetune": finetune}
    monkeypatch.setattr(ablation_runs, "COMMON", changed)


@pytest.mark.slow
def test_a_run_is_real_and_what_is_shared_changes_nothing(small, tmp_path):
    ablation_runs.render_missing(tmp_path / "walkers", seeds=1)
    jobs = [j for j in ablation_variants.plan_jobs(CHECKPOINTS, seeds=1) if j.bits == "W4A4"]
    wanted = ("ranges MSE", "ranges MSE + IDC", "IDC, labels shuffled", "IDC, all pairs without labels")
    results = {}
    for job in jobs:
        if job.variant.name in wanted:
            results[job.variant.name] = ablation_runs.execute(job, tmp_path, threads=2)
    for result in results.values():
        assert "failure" not in result
        assert np.array(result["quantized"]["rank1"]).shape == (2, 3)
        assert np.allclose(result["file"]["ap"], result["quantized"]["ap"], atol=1)
        assert result["peak_mb"] > 100
    sqnr = {name: result["sqnr_db"] for name, result in results.items()}
    assert sqnr["ranges MSE"] < sqnr["ranges MSE + IDC"]
    curves = [results[name]["record"]["idc"]["curve"][0][1] for name in wanted[1:4]]
    assert curves[0] != curves[2]  # without labels other pairs count
    again = next(job for job in jobs if job.variant.name == "ranges MSE + IDC")
    assert ablation_runs.execute(again, tmp_path, threads=2)["sqnr_db"] == sqnr["ranges MSE + IDC"]
    for state in (tmp_path / "states").glob("*"):
        if state.suffix != ".pt":
            state.unlink()
    assert ablation_runs.execute(again, tmp_path, threads=2)["sqnr_db"] == sqnr["ranges MSE + IDC"]


def run_of(job, rank1, sqnr, ranks_file=True):
    figures = {"rank1": rank1, "ap": rank1}
    return {
        "key": job.key,
        "job": {"seed": job.seed},
        "terms": ablation_runs.TERMS,
        "sqnr_db": sqnr,
        "cosine": 0.9,
        "quantized": figures,
        **({"file": {"rank1": rank1, "ap": [[70, 80, 90]] * 3}} if ranks_file else {}),
        "float": {"rank1": [[90, 90, 90]] * 3, "ap": [[80, 80, 80]] * 3},
        "seconds": {"ranges": 2.0, "IDC": 3.0},
        "peak_mb": 500,
    }


def test_the_table_says_what_the_runs_say(tmp_path):
    jobs = [j for j in ablation_variants.plan_jobs(CHECKPOINTS, seeds=2) if j.bits == "W4A4"]
    plain = [j for j in jobs if j.variant.name == "ranges MSE"]
    better = [j for j in jobs if j.variant.name == "ranges MSE + IDC"]
    lines = [
        run_of(j, [[50, 60, 70], [40, 40, 40], [10, 20, 30]], 6.0, ranks_file=j.seed == 0) for j in plain
    ]
    lines += [run_of(j, [[52, 62, 72], [44, 44, 44], [13, 23, 33]], 7.0 + j.seed) for j in better]
    other = next(j for j in jobs if j.variant.name == "GPTQ")
    refused = {"key": other.key, "job": {"seed": 0}, "failure": "refused"}
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"key": "half a li'
    (tmp_path / "runs.jsonl").write_text(text)
    runs = ablation_tables.read_runs(tmp_path / "runs.jsonl")
    assert len(runs) == 4
    rows = {row["method"]: row for row in ablation_tables.summarise(jobs, runs | {other.key: refused})}
    row = rows["ranges MSE + IDC"]
    assert row["seeds"] == 2
    assert row["rank1"] == pytest.approx(43)
    assert row["rank1_nm"] == pytest.approx((52 + 44 + 13) / 3)
    assert row["rank1_gain"] == pytest.approx(3)  # 2, 4 and 3 points for the three identities
    lowest, highest = row["rank1_interval"]
    assert 2 <= lowest < 3 < highest <= 4
    assert row["sqnr_gain"] == pytest.approx(1.5)
    assert (row["cpu_seconds"], row["peak_mb"], row["float_rank1"]) == (5, 500, 90)
    assert rows[other.variant.name]["failed"] == 1
    ablation_tables.write_tables(jobs, runs, tmp_path)
    table = (tmp_path / "ablation.md").read_text()
    assert "| ranges MSE + IDC | 2 | 36.3 | 43.0 | 49.7 | 43.00 | 43.00 | 80.00 |" in table
    assert "| 40.00 | 40.00 | – |" in table  # the file was ranked for one of the two seeds
    assert "+3.00 [" in table


def test_runs_under_different_terms_make_no_table(tmp_path):
    job = ablation_variants.plan_jobs(CHECKPOINTS, seeds=1)[0]
    run = run_of(job, [[1, 1, 1]] * 3, 1.0)
    elsewhere = {**run, "key": "other", "terms": ["another gallery"]}
    (tmp_path / "runs.jsonl").write_text(f"{json.dumps(run)}\n{json.dumps(elsewhere)}\n")
    with pytest.raises(ValueError, match="runs under different terms"):
        ablation_tables.read_runs(tmp_path / "runs.jsonl")


@pytest.mark.parametrize(
    ("change", "what"),
    [({"terms": ["another gallery"]}, "other terms"), ({"checkpoint_sha256": "0"}, "another checkpoint")],
)
def test_runs_are_not_added_to_those_of_other_terms_or_another_network(change, what, tmp_path):
    """Their table can be written; a new run would stand beside figures that it cannot be compared with."""
    job = ablation_variants.plan_jobs(CHECKPOINTS, seeds=1)[0]
    run = {**run_of(job, [[50, 60, 70]] * 3, 6.0), **change}
    run["job"] = {"seed": 0, "network": job.network}
    (tmp_path / "runs.jsonl").write_text(json.dumps(run) + "\n")
    arguments = ["--out", str(tmp_path), "--work", str(tmp_path / "work"), "--seeds", "1"]
    arguments += [
        "--gaitbase",
        CHECKPOINTS["gaitbase-small"],
        "--gaitset",
        str(EXAMPLES / "models" / "gaitset-small.pt"),
    ]
    refused = CliRunner().invoke(ablation.main, arguments)
    assert refused.exit_code == 1
    assert f"has runs with {what}; choose another --out" in refused.output
    written = CliRunner().invoke(ablation.main, [*arguments, "--table"])
    assert written.output.startswith("1 rows in"), written.output


def test_a_row_says_in_how_many_runs_idc_was_left_out(tmp_path):
    jobs = [
        j for j in ablation_variants.plan_jobs(CHECKPOINTS, seeds=2) if j.variant.name == "+ IDC, 8 sequences"
    ]
    runs = {job.key: run_of(job, [[50, 60, 70]] * 3, 6.0) for job in jobs}
    runs[jobs[0].key]["record"] = {"idc": {"left_out": "too few"}}
    ablation_tables.write_tables(jobs, runs, tmp_path)
    assert "| + IDC, 8 sequences (IDC left out in 1) | 2 |" in (tmp_path / "ablation.md").read_text()


def test_the_digest_of_a_checkpoint_is_that_of_its_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "c").write_bytes(b"others")
    digests = [ablation_runs.checkpoint_digest(str(tmp_path / name)) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
