"""Commands in several processes, as torchrun starts them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import numpy_helper

from qgait_ptq.gait.walkers.population import Split, WalkerSettings, split_identities
from qgait_ptq.gait.walkers.rendering import write_walkers
from tests.cli.test_cli import SMALL, run
from tests.conftest import SHALLOW, make_gaitbase
from tests.system.torchrun import finish, start, torchrun

STOPPED = 60  # seconds in which all processes of a run end when one has died
SCALES = 1e-5  # largest relative difference of scales and biases after IDC in two processes
RECIPE = {
    "quantization": {
        "weight_bits": 4,
        "calibration_sequences": 24,
        "minimum_agreement": -1,
        "idc": {"steps": 4, "frames": 6, "identities": 4},
        "finetune": {"block_steps": 2, "steps": 60},
    }
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, walkers_root):
    """Weights, a recipe, and walkers."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save(make_gaitbase(**SHALLOW).state_dict(), folder / "weights.pt")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    shutil.copytree(walkers_root, folder / "people")
    return folder


@pytest.fixture(scope="module")
def ten_people(tmp_path_factory):
    """Enough walkers for IDC, with short sequences."""
    root, settings = tmp_path_factory.mktemp("ten"), WalkerSettings(shortest=8, longest=16)
    for split, count in ((Split.TRAIN, 10), (Split.TEST, 2)):
        write_walkers(
            root, split, split_identities(split, count), settings, views_per_trial=1, array_format="npz"
        )
    return root


def words(command: str, people: Path, *more: object) -> list[str]:
    model = ["weights.pt", *SMALL, "--recipe", "recipe.yaml", "--data", people]
    return list(map(str, [command, *model, "--device", "cpu", *more]))


def own_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of standard error that are not torchrun's."""
    return [line for line in done.stderr.splitlines() if re.match("qgait-ptq: |stopped", line)]


def exit_codes(done: subprocess.CompletedProcess[str]) -> list[int]:
    """The exit codes of failed processes, as torchrun lists them."""
    return [int(code) for code in re.findall(r"^  exitcode  : (-?\d+)", done.stderr, re.MULTILINE)]


@pytest.mark.slow  # test_exchanging compares the embeddings
def test_a_folder_is_embedded_to_the_same_file(eight_bit_file, folder):
    given = ["embed", eight_bit_file, folder / "people", "--out"]
    assert run(*given, folder / "one.npz").returncode == 0
    done = torchrun("-m", "qgait_ptq", *given, "two.npz", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote two.npz") == 1
    assert (folder / "one.npz").read_bytes() == (folder / "two.npz").read_bytes()
    assert not list(folder.glob(".*"))


@pytest.mark.slow  # the test of a process that dies is of the same kind
def test_an_error_of_one_process_is_printed_once_and_ends_all_with_its_code(folder, tmp_path):
    shutil.copytree(folder / "people", tmp_path / "people")
    last = sorted((tmp_path / "people").rglob("*.npz"))[-1]  # in the share of the second process
    np.savez(last, np.zeros((6, 10, 10), np.uint8))
    done = torchrun("-m", "qgait_ptq", *words("evaluate", tmp_path / "people"), folder=folder)
    (line,) = own_lines(done)
    assert "silhouettes of 10×10" in line
    assert exit_codes(done) == [2, 2]


@pytest.mark.slow
def test_a_command_for_one_process_is_refused_once(folder):
    done = torchrun("-m", "qgait_ptq", "inspect", "weights.pt", folder=folder)
    assert own_lines(done) == [
        "qgait-ptq: inspect runs in one process; start it without torchrun; see 'qgait-ptq --help'"
    ]
    assert exit_codes(done) == [2, 2]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_dies_stops_the_others_with_one_line_and_without_a_result(folder, rank):
    out, log = folder / f"out-{rank}", folder / f"log-{rank}"
    process = start(
        "-m",
        "qgait_ptq",
        *words("quantize", folder / "people", "--out", out, "--log-file", log),
        folder=folder,
    )
    wait_until(lambda: log.exists() and "capture: begins" in log.read_text(), process)
    os.kill(worker(process, rank), signal.SIGKILL)
    died = time.monotonic()
    done = finish(process)
    assert time.monotonic() - died < STOPPED
    assert done.returncode != 0
    (line,) = own_lines(done)
    assert re.search("another process of th(e|is) run has ended", line)
    assert not out.exists()


@pytest.mark.slow
def test_a_result_differs_from_that_of_one_process_in_the_last_digits_of_idc(folder, ten_people):
    assert run(*words("quantize", ten_people, "--out", "one"), cwd=folder).returncode == 0
    done = torchrun("-m", "qgait_ptq", *words("quantize", ten_people, "--out", "two"), folder=folder)
    assert done.returncode == 0, done.stderr
    one, two = (stored_values(folder / name / "model.onnx") for name in ("one", "two"))
    for name, expected in one.items():
        largest = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(two[name], expected, rtol=SCALES, atol=SCALES * largest)
    reports = [json.loads((folder / name / "report.json").read_text()) for name in ("one", "two")]
    assert [report["calibration"]["idc"]["steps"] for report in reports] == [4, 4]
    assert reports[0]["accuracy"]["float"] == reports[1]["accuracy"]["float"]


@pytest.mark.slow
def test_a_killed_fine_tuning_is_resumed_by_another_number_of_processes(folder, ten_people):
    given = words("quantize", ten_people, "--finetune", "--out", "resumed")
    killed = start("-m", "qgait_ptq", *given, folder=folder)
    states = folder / "resumed.finetuning"
    wait_until(lambda: (states / "end-to-end.pt").exists(), killed)
    os.kill(worker(killed, 1), signal.SIGKILL)
    assert finish(killed).returncode != 0
    assert not (folder / "resumed").exists()
    resumed = run(*given, "--resume", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert not states.exists()


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def worker(process: subprocess.Popen[str], rank: int) -> int:
    """The process number of a process that torchrun started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and f"\0RANK={rank}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"there is no process {rank}")


def stored_values(path: Path) -> dict[str, np.ndarray]:
    """The weights, scales and biases of a file, as numbers."""
    stored = onnx.load(path).graph.initializer
    return {one.name: numpy_helper.to_array(one).astype(np.float64) for one in stored}
