import itertools
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from qgait_ptq.errors import ConfigError
from qgait_ptq.report.record import _digest
from qgait_ptq.report.writing import check_writable, write_result


def contents(folder):
    """Files that are not hidden with their contents, and folders."""
    return {
        path.name: path.read_bytes() if path.is_file() else None
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def end_while_writing(folder, newer, moment, ending):
    """End a run before the rename of this number; return whether there was such a rename."""
    process = os.fork()
    if process == 0:
        rename, moments = os.replace, itertools.count()

        def end_at_the_moment(source, target):
            if next(moments) == moment:
                if ending == "kill":
                    os._exit(1)
                raise KeyboardInterrupt
            rename(source, target)

        os.replace = end_at_the_moment
        with suppress(KeyboardInterrupt):
            write_result(folder, newer)
            os._exit(0)
        os._exit(1)
    return os.waitpid(process, 0)[1] != 0


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


@pytest.mark.parametrize("name", ["model.onnx", "report.html", "float.onnx"])
def test_a_folder_with_the_name_of_a_file_is_refused_before_anything_changes(tmp_path, name):
    older = {"model.onnx": b"old", "report.json": b"old", "report.html": b"old", "recipe.yaml": b"old"}
    write_result(tmp_path, {file: content for file, content in older.items() if file != name})
    (tmp_path / name).mkdir()
    before = contents(tmp_path)
    for act in (check_writable, lambda folder: write_result(folder, dict.fromkeys((*older, name), b"new"))):
        with pytest.raises(ConfigError, match=rf"{name}: a folder has the name of a file of the result"):
            act(tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_with_the_name_of_a_file_that_is_not_written_stays(tmp_path):
    write_result(tmp_path, {"model.onnx": b"old", "report.json": b"old"})
    (tmp_path / "float.onnx").mkdir()
    write_result(tmp_path, {"model.onnx": b"new", "report.json": b"new"})
    assert contents(tmp_path) == {"model.onnx": b"new", "report.json": b"new", "float.onnx": None}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file immutable")
@pytest.mark.parametrize("name", ["model.onnx", "report.json", "float.onnx"])
def test_a_file_that_cannot_be_replaced_is_named_and_the_older_result_stays(tmp_path, name):
    older = dict.fromkeys(("model.onnx", "report.html", "report.json", "float.onnx"), b"old")
    write_result(tmp_path, older)
    if subprocess.run(["chattr", "+i", tmp_path / name], check=False, capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        with pytest.raises(ConfigError, match=rf"{name}: the result cannot be written \(Operation not"):
            write_result(tmp_path, {"model.onnx": b"new", "report.json": b"new", "report.html": b"new"})
    finally:
        subprocess.run(["chattr", "-i", tmp_path / name], check=True)
    assert contents(tmp_path) == older


# The moments of writing: before each rename of a file of the folder, and before the folder is tidied up.
@pytest.mark.parametrize("moment", range(9))
@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_a_run_that_ends_while_it_writes_leaves_no_mixture(tmp_path, moment, ending):
    """A report is beside its own model, and optional files are beside their own report."""
    older = dict.fromkeys(("model.onnx", "report.html", "report.json", "recipe.yaml", "float.onnx"), b"old")
    newer = dict.fromkeys(("model.onnx", "report.html", "report.json", "recipe.yaml"), b"new")
    write_result(tmp_path, older)
    ended = end_while_writing(tmp_path, newer, moment, ending)
    left = contents(tmp_path)
    assert len(set(left.values())) <= 1
    if left.keys() & {"recipe.yaml", "float.onnx"}:
        assert left.keys() >= {"model.onnx", "report.html", "report.json"}
    if ending == "stop" and ended:
        assert left == older
    check_writable(tmp_path)  # the next run brings an older result back that was moved aside
    assert contents(tmp_path) in (older, newer, {n: b"new" for n in newer if n != "recipe.yaml"})
    write_result(tmp_path, {**newer, "model.onnx": b"newest"})
    assert contents(tmp_path) == {**newer, "model.onnx": b"newest"}
    assert not list(tmp_path.glob(".*"))


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


def test_a_test_set_is_the_same_in_another_order_of_people():
    assert _digest(["a/nm-01/000", "b/nm-01/000"]) == _digest(["b/nm-01/000", "a/nm-01/000"])
    assert _digest(["a/nm-01/000"]) != _digest(["b/nm-01/000"])
