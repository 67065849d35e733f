"""Files in the user's cache folder: kept, checked, limited, and never a reason to fail."""

import os
import time

import pytest

from qgait_ptq.system.file_cache import FileCache, user_cache_folder
from qgait_ptq.system.locking import locked
from qgait_ptq.system.workers import map_in_processes

KIBIBYTE = 1024
DIGEST = 32  # bytes that a file has besides its content


@pytest.fixture
def notes():
    return []


@pytest.fixture
def cache(tmp_path, notes):
    return FileCache(tmp_path / "cache" / "walkers", 100 * KIBIBYTE, notes.append)


def test_what_was_written_is_read(cache, notes):
    assert cache.read("a") is None
    assert not cache.has("a")
    cache.write("a", b"content")
    assert cache.has("a")
    assert cache.read("a") == b"content"
    assert os.listdir(cache.folder) == ["a"]
    assert notes == []


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 200])
def test_a_damaged_file_is_noted_and_written_again(cache, notes, content):
    cache.write("a", b"content")
    (cache.folder / "a").write_bytes(content)
    assert cache.read("a") is None
    assert len(notes) == 1
    assert "a: the cached file is damaged" in notes[0]
    cache.write("a", b"content")
    assert cache.read("a") == b"content"


def test_a_file_that_cannot_be_read_is_noted(cache, notes):
    (cache.folder / "a").mkdir(parents=True)
    assert cache.read("a") is None
    assert len(notes) == 1
    assert "cannot be read (Is a directory)" in notes[0]


def test_a_folder_that_cannot_be_made_is_noted_once(tmp_path, notes):
    (tmp_path / "cache").write_text("a file")
    cache = FileCache(tmp_path / "cache" / "walkers", KIBIBYTE, notes.append)
    assert not cache.has("a")
    for key in ("a", "b"):
        cache.write(key, b"content")
    assert len(notes) == 1
    assert "nothing is cached" in notes[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_noted_once(cache, notes):
    cache.folder.mkdir(parents=True)
    cache.folder.chmod(0o500)
    for key in ("a", "b"):
        cache.write(key, b"content")
    assert notes == [f"{cache.folder}: nothing is cached (Permission denied)"]


def test_the_files_that_were_not_used_for_longest_are_removed_first(cache):
    content = b"x" * (30 * KIBIBYTE)
    now = time.time()
    for age, key in ((30, "a"), (20, "b"), (10, "c")):
        cache.write(key, content)
        os.utime(cache.folder / key, (now - age, now - age))
    assert cache.read("a") == content  # now b is the one that was not used for longest
    cache.write("d", content)
    assert sorted(os.listdir(cache.folder)) == ["a", "c", "d"]


def test_files_that_a_killed_run_left_count(cache):
    cache.folder.mkdir(parents=True)
    left = cache.folder / ".old.part"
    left.write_bytes(b"x" * (99 * KIBIBYTE))
    os.utime(left, (0, 0))
    cache.write("a", b"x" * (2 * KIBIBYTE))
    assert os.listdir(cache.folder) == ["a"]


def test_content_beyond_the_limit_is_not_written(cache):
    cache.write("a", b"x" * (101 * KIBIBYTE))
    assert not cache.has("a")


def test_while_another_run_writes_a_file_it_is_left_alone(cache, notes):
    cache.write("a", b"old")
    ready = (cache.folder / "a").stat()
    lock = cache.folder / ".a.lock"
    with locked(cache.folder / "a"):
        assert lock.exists()
        (content,) = map_in_processes(write_from_outside, [cache.folder], 1)
    assert content == b"old"
    assert (cache.folder / "a").stat().st_mtime_ns >= ready.st_mtime_ns
    assert notes == []


def test_runs_that_fill_a_cache_at_once_leave_whole_files(tmp_path):
    runs = [(tmp_path, first) for first in (0, 1)]
    for written in map_in_processes(fill, runs, 2):
        assert written == []
    cache = FileCache(tmp_path, 100 * KIBIBYTE, lambda text: None)
    assert sorted(os.listdir(tmp_path)) == [str(key) for key in range(10)]
    assert all(cache.read(str(key)) == str(key).encode() * 1000 for key in range(10))


def test_the_folder_is_that_of_the_variable_or_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "qgait_ptq"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):  # the standard ignores relative paths
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert user_cache_folder() == tmp_path / "home" / ".cache" / "qgait_ptq"


def write_from_outside(folder):
    cache = FileCache(folder, 100 * KIBIBYTE, print)
    cache.write("a", b"new")
    return cache.read("a")


def fill(run):
    """Write the same ten files several times, and return the notes."""
    folder, _ = run
    notes = []
    cache = FileCache(folder, 100 * KIBIBYTE, notes.append)
    for _ in range(20):
        for key in range(10):
            cache.write(str(key), str(key).encode() * 1000)
            if cache.read(str(key)) not in (None, str(key).encode() * 1000):
                notes.append(f"{key} is wrong")
    return notes
