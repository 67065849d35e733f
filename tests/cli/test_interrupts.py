"""Commands that are stopped, killed, run twice at a time, or that cannot write."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from qgait_ptq.gait.walkers.population import Split, split_identities
from qgait_ptq.gait.walkers.rendering import write_walkers
from qgait_ptq.system.locking import locked
from tests.cli.background_runs import Run, run
from tests.cli.forks import COMMAND
from tests.cli.test_cli import SMALL, assert_refused
from tests.conftest import SHALLOW, make_gaitbase

RECIPE = {
    "quantization": {
        "calibration_sequences": 6,
        "minimum_agreement": -1,
        "idc": {"enabled": False, "frames": 6},
        "finetune": {"block_steps": 4},
    }
}


def files(root: Path) -> dict[str, bytes]:
    """All files, hidden ones too, with what they hold; folders are empty."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in sorted(root.rglob("*"))
    }


def write_sequences(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        view = root / f"{number:03d}" / "nm-01" / "090"
        view.mkdir(parents=True)
        np.save(view / "090.npy", 255 * rng.integers(0, 2, (4, 64, 44), np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walkers, weights, a recipe, a quantized file, and short sequences to embed."""
    folder = tmp_path_factory.mktemp("made")
    for split in (Split.TRAIN, Split.TEST):
        write_walkers(
            folder / "data", split, split_identities(split, 2), views_per_trial=1, array_format="npz"
        )
    torch.save(make_gaitbase(**SHALLOW).state_dict(), folder / "weights.pt")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    write_sequences(folder / "people", 480)
    done = run(*words(folder, "quantize"), "--no-finetune", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def words(made: Path, command: str) -> tuple[Any, ...]:
    """A small command of each kind that writes in its current folder."""
    network = (made / "weights.pt", *SMALL, "--data", made / "data", "--recipe", made / "recipe.yaml")
    return {
        "quantize": ("quantize", *network, "--finetune", "--out", "out"),
        "sensitivity": (
            "sensitivity", *network, "--widths", 4, "--sequences", 6, "--resume", "out", "--plot", "plot.svg",
            "--json",
        ),
        "embed": ("embed", made / "out" / "model.onnx", made / "people", "--out", "out", "--jobs", 2),
        "walkers": ("walkers", "out", "--identities", 2, "--views-per-trial", 1, "--workers", 2),
    }[command]  # fmt: skip


COMMANDS = ("quantize", "sensitivity", "embed", "walkers")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_where_another_run_writes_is_refused_and_named(made, tmp_path, command):
    with locked(tmp_path / "out"):
        before = files(tmp_path)
        assert_refused(run(*words(made, command), folder=tmp_path), f"(process {os.getpid()} on ")
        assert {**files(tmp_path), "tmp": b""} == {**before, "tmp": b""}


@pytest.mark.slow
def test_embeds_into_one_file_at_the_same_time_end_well(made, tmp_path):
    runs = [Run(*words(made, "embed"), folder=tmp_path) for _ in range(3)]
    ended = [one.end() for one in runs]
    assert {done.returncode for done in ended} <= {0, 2}
    assert any(done.returncode == 0 for done in ended)
    for done in ended:
        if done.returncode:
            assert_refused(done, "another run")
    assert set(files(tmp_path)) == {"out", "tmp"}


@pytest.mark.parametrize(
    ("command", "number", "group", "status"),
    [
        ("quantize", signal.SIGTERM, False, 143),
        pytest.param("embed", signal.SIGTERM, False, 143, marks=pytest.mark.slow),
        ("walkers", signal.SIGINT, True, 130),  # as a terminal sends Ctrl-C
        pytest.param("sensitivity", signal.SIGTERM, False, 143, marks=pytest.mark.slow),
        pytest.param("walkers", signal.SIGTERM, False, 143, marks=pytest.mark.slow),
        pytest.param("walkers", signal.SIGINT, False, 130, marks=pytest.mark.slow),
        pytest.param("quantize", signal.SIGINT, False, 130, marks=pytest.mark.slow),
        pytest.param("walkers", signal.SIGTERM, True, 143, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_says_so_and_leaves_nothing_half_written(
    made, tmp_path, command, number, group, status
):
    running = Run(*words(made, command), folder=tmp_path)
    running.wait_until((tmp_path / ".out.lock").exists)
    if command == "walkers":
        running.wait_until(lambda: len(running.processes()) > 2)  # the run, and processes that begin
    done = running.end(number, group)
    assert (done.returncode, done.stderr.strip()) == (status, "stopped")
    left = [name for name in files(tmp_path) if name != "tmp" and not name.startswith((".out.", "out"))]
    assert left == []
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".lock", ".part", ".owner"))]


def test_the_processes_of_a_killed_run_end_and_the_next_run_tidies_up(made, tmp_path):
    running = Run("walkers", "out", "--identities", 60, "--workers", 2, folder=tmp_path)
    running.wait_until(lambda: list(tmp_path.glob("out/.qgait-ptq-*")))
    running.wait_until(lambda: len(running.processes()) > 2)
    assert running.end(signal.SIGKILL).returncode == -signal.SIGKILL
    assert list(tmp_path.glob("out/.qgait-ptq-*"))
    done = run(*words(made, "walkers"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not [name for name in files(tmp_path) if "/." in f"/{name}" or "tmp/" in name]


@pytest.mark.slow
def test_two_signals_at_once_are_one(tmp_path):
    """``timeout`` signals the process, and then its group."""
    running = Run("walkers", "out", "--identities", 60, "--workers", 1, folder=tmp_path)
    running.wait_until(lambda: list(tmp_path.glob("out/*")))
    running.process.send_signal(signal.SIGTERM)
    done = running.end(signal.SIGTERM)
    assert (done.returncode, done.stderr.strip()) == (143, "stopped")
    assert not list(tmp_path.glob("**/.*"))


@pytest.mark.parametrize("changed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_embed_goes_on_unless_a_sequence_was_replaced(made, tmp_path, changed):
    shutil.copytree(made / "people", tmp_path / "people")
    embed = ("embed", made / "out" / "model.onnx", "people", "--out", "out.npz", "--jobs", 1)
    running = Run(*embed, folder=tmp_path)
    running.wait_until(lambda: list(tmp_path.glob(".out.npz.*/00000000.npy")))
    running.end(signal.SIGKILL)
    assert not (tmp_path / "out.npz").exists(), "it was over before it could be killed"
    if changed:  # another recording of the same length
        first = tmp_path / "people" / "000" / "nm-01" / "090" / "090.npy"
        np.save(first, np.load(first)[:, ::-1])
    again = run(*embed, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert ("already embedded by an earlier run" in again.stdout) is not changed
    whole = run(*embed[:-3], "whole.npz", *embed[-2:], folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "people", "tmp", "whole.npz"]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    ("command", "size"),
    [
        ("sensitivity", "8k"),
        ("embed", "64k"),
        ("walkers", "64k"),
        pytest.param("quantize", "64k", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_no_partial_file(made, tmp_path, command, size):
    with mounted(tmp_path / "disk", f"size={size}") as disk:
        line = [f"disk/{word}" if word == "out" else word for word in words(made, command)]
        done = run(*line, folder=tmp_path)
        *before, last = done.stderr.strip().splitlines()
        assert (done.returncode, last.startswith("qgait-ptq: ")) == (2, True)
        assert "No space left on device" in last
        assert "Traceback" not in " ".join(before)  # such as the line that describes the data
        left = [
            path.name for path in disk.rglob("*") if path.is_file() and path.suffix not in (".npy", ".pkl")
        ]
        assert left == []
        assert not list(disk.rglob(".qgait-ptq-*"))


def test_a_read_only_folder_of_states_is_refused(made, tmp_path):
    with mounted(tmp_path / "disk", "size=64k,ro"):
        line = [word if word != "out" else "disk/states" for word in words(made, "sensitivity")]
        assert_refused(run(*line, folder=tmp_path), "Read-only file system")
        line = [word if word != "out" else "disk" for word in words(made, "sensitivity")]
        assert_refused(run(*line, folder=tmp_path), "Read-only file system")


@pytest.mark.parametrize(
    ("line", "unbuffered"),
    [
        *(("compare out", value) for value in ("", "1")),
        *(("--help", value) for value in ("", "1")),
        ("compare out --json", ""),
        pytest.param("targets", "", marks=pytest.mark.slow),  # it imports torch each time
        ("completion bash", "1"),
    ],
)
def test_output_that_cannot_be_written(made, line, unbuffered):
    def shell(redirect: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{COMMAND} {line} {redirect}"],
            cwd=made,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            capture_output=True,
            text=True,
            check=False,
        )

    closed = shell("| true")
    assert (closed.returncode, closed.stderr) == (141, "")
    assert_refused(shell("> /dev/full"), "standard output: writing failed (No space left on device)")


@dataclass(frozen=True)
class Whole:
    """A run that nothing stopped: its command, the folder of its result, how long it took, and its output."""

    command: str
    folder: Path
    seconds: float
    stdout: str


@pytest.fixture(scope="module", params=COMMANDS)
def whole(request: pytest.FixtureRequest, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp(f"whole-{request.param}")
    began = time.monotonic()
    done = run(*words(made, request.param), folder=folder)
    assert done.returncode == 0, done.stderr
    return Whole(request.param, folder, time.monotonic() - began, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(13))  # 52 moments over the four commands
def test_a_run_killed_at_any_moment_is_repeated_to_the_same_bytes(whole, made, tmp_path, number):
    line, goes_on = words(made, whole.command), ["--resume"] if whole.command == "quantize" else []
    running = Run(*line, folder=tmp_path)
    time.sleep(random.Random(f"{whole.command} {number}").uniform(0, whole.seconds))
    running.end(signal.SIGKILL)
    again = run(*line, *goes_on, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert comparable(tmp_path) == comparable(whole.folder)
    if whole.command == "sensitivity":
        assert again.stdout == whole.stdout


def comparable(folder: Path) -> dict[str, bytes]:
    """Files of a result; those that hold times count by their names alone."""
    timed = ("report.json", "report.html", "recipe.yaml")
    return {name: b"" if name.endswith(timed) else content for name, content in files(folder).items()}
