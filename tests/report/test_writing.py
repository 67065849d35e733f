import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qgait_ptq.errors import ConfigError
from qgait_ptq.report.writing import check_writable, write_result


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_all_files_are_written(tmp_path):
    write_result(tmp_path / "out", {"model.onnx": b"model", "report.json": b"{}"})
    assert names(tmp_path / "out") == ["model.onnx", "report.json"]


def test_an_older_result_is_replaced_and_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for content in (b"old", b"new"):
        write_result(tmp_path, {"model.onnx": content})
    assert (tmp_path / "model.onnx").read_bytes() == b"new"
    assert names(tmp_path) == ["model.onnx", "notes.txt"]


def test_files_of_an_older_result_that_the_new_one_does_not_have_are_removed(tmp_path):
    """They would be taken for those of the new one: a float file to compare with, a recipe to repeat."""
    whole = dict.fromkeys(("model.onnx", "report.json", "recipe.yaml", "float.onnx", "model.pt2"), b"old")
    write_result(tmp_path, whole)
    (tmp_path / "notes.txt").write_text("mine")
    write_result(tmp_path, {"model.onnx": b"new", "report.json": b"{}"})
    assert names(tmp_path) == ["model.onnx", "notes.txt", "report.json"]


def test_files_that_are_of_no_result_stay(tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    write_result(tmp_path, {"model.onnx": b"new", "report.json": b"{}"})
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for act in (check_writable, lambda folder: write_result(folder, {"model.onnx": b"model"})):
        with pytest.raises(ConfigError, match="the folder cannot be written"):
            act(tmp_path / "file" / "deep" / "out")
    assert names(tmp_path) == ["file"]


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """A limit on file sizes fails a write in the middle, as a full disk does."""
    code = (
        "from pathlib import Path\n"
        "from qgait_ptq.errors import ConfigError\n"
        "from qgait_ptq.report.writing import write_result\n"
        "try:\n"
        f"    folder = Path({str(tmp_path / 'new' / 'out')!r})\n"
        "    write_result(folder, {'model.onnx': b'x' * 100_000})\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert "cannot be written (File too large)" in done.stdout
    assert names(tmp_path) == []
