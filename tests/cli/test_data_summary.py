"""The line about data: every command that reads a data set prints it once."""

import json
import os
import shutil

import pytest

from tests.cli.test_cli import SMALL, checkpoint, run  # noqa: F401 - a fixture

SUMMARY = (
    "data: 60 sequences of 3 identities for calibration, 60 sequences of 3 identities for testing "
    "(24 gallery, 36 probes). Left out: 1 identity of the partition without a folder (nobody)."
)


@pytest.fixture(scope="module")
def root(walkers_root, tmp_path_factory):
    """The walkers, and an identity of the partition that has no folder."""
    root = tmp_path_factory.mktemp("data") / "root"
    shutil.copytree(walkers_root, root)
    partition = json.loads((root / "partition.json").read_text())
    partition["TEST_SET"].append("nobody")
    (root / "partition.json").write_text(json.dumps(partition))
    return root


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate",),
        ("sensitivity", "--widths", "8", "--sequences", "4"),
        ("quantize", "--dry-run"),
    ],
    ids=lambda command: command[0],
)
def test_each_command_prints_it_once(command, root, checkpoint):  # noqa: F811
    name, *options = command
    done = run(name, checkpoint, *SMALL, *options, "--data", root)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).count(SUMMARY) == 1


@pytest.mark.slow
def test_a_run_prints_it_once_and_keeps_it_in_the_report_alone(root, checkpoint, tmp_path):  # noqa: F811
    done = run(
        *("quantize", checkpoint, *SMALL, "--data", root, "--out", tmp_path / "out", "--json"),
        *("--calibration-sequences", 6),
        *("--log-file", tmp_path / "log"),
    )
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stderr.split()).count(SUMMARY) == 1
    assert (tmp_path / "log").read_text().count(SUMMARY) == 1
    note = "1 identity of the partition without a folder (nobody)"
    assert json.loads(done.stdout)["data"]["notes"] == [note]
    assert f"data: {note}" in (tmp_path / "out" / "report.html").read_text()
    assert b"nobody" not in (tmp_path / "out" / "model.onnx").read_bytes()
    embedded = run("embed", tmp_path / "out" / "model.onnx", root, "--out", tmp_path / "all.npz")
    assert embedded.stdout.splitlines()[0] == "data: 120 sequences of 6 identities."
    assert os.path.exists(tmp_path / "all.npz")
