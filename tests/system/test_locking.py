"""Locks of outputs and folders of killed runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.locking import OWNER, locked, temporary_files, temporary_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from qgait_ptq.system.locking import locked, temporary_folder
with locked(Path("out")), temporary_folder(Path("."), "work-"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def take_and_stop(path, call):
    """Take a lock; a signal arrives when a function in C returns, such as `os.open`."""

    def profile(frame, event, argument):
        if event == "c_return" and argument.__name__ == call:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(profile)
    take(path)


@pytest.mark.parametrize("call", ["open", "flock", "fstat", "ftruncate", "write"])
def test_a_signal_while_a_lock_is_taken_leaves_no_file(tmp_path, call):
    with pytest.raises(KeyboardInterrupt):
        take_and_stop(tmp_path / "out", call)
    assert not list(tmp_path.iterdir())
    take(tmp_path / "out")  # nothing holds it


def in_another_thread(act):
    errors = []

    def run():
        try:
            act()
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors


def take(path):
    with locked(path):
        pass


def test_a_thread_may_take_its_lock_again_and_others_are_refused(tmp_path):
    out = tmp_path / "deep" / "out"
    with locked(out, None, tmp_path / "plot"):
        with locked(out):
            assert in_another_thread(lambda: take(out))
        (error,) = in_another_thread(lambda: take(out))
        assert f"another run (process {os.getpid()} on " in str(error)
        assert not in_another_thread(lambda: take(tmp_path / "other"))
    assert list(tmp_path.iterdir()) == []


def test_one_output_has_one_lock_by_whatever_path(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    with locked(tmp_path / "link"):
        assert in_another_thread(lambda: take(tmp_path / "x" / ".." / "out"))


def test_a_killed_run_blocks_nobody_and_its_folder_is_removed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    with locked(tmp_path / "out"), temporary_folder(tmp_path, "work-") as folder:
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / ".out.lock", folder])
    assert list(tmp_path.iterdir()) == []


def test_folders_of_runs_that_live_stay(tmp_path):
    with temporary_folder(tmp_path) as first:
        (first / "work").touch()
        with temporary_folder(tmp_path) as second:
            assert {path.name for path in first.iterdir()} == {OWNER, "work"}
            assert first != second
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_go_where_the_next_run_finds_them(tmp_path):
    code = (
        "import tempfile, subprocess, sys\n"
        "from qgait_ptq.system.locking import temporary_files\n"
        "with temporary_files():\n"
        "    print(tempfile.mkdtemp())\n"
        "    child = [sys.executable, '-c', 'import tempfile; print(tempfile.gettempdir())']\n"
        "    subprocess.run(child, check=True)\n"
        "print(tempfile.gettempdir())\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-uc", code], env=environment, capture_output=True, text=True, check=True
    )
    own, child, after = done.stdout.split()
    assert own.startswith(child)
    assert child.startswith(f"{tmp_path}/qgait-ptq-")
    assert after == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"not writable; .*Not a directory"):
        take(tmp_path / "file" / "deep" / "out")


def test_without_fcntl_runs_are_not_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path / "out"), temporary_folder(tmp_path) as folder:
        assert not in_another_thread(lambda: take(tmp_path / "out"))
        with temporary_folder(tmp_path):
            assert folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_commands_go_on_without_a_place_for_temporary_files(monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/nowhere")
    with temporary_files():
        assert True
