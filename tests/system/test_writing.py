"""Paths beside others, also where a path has no name of its own."""

from pathlib import Path

import pytest

from qgait_ptq.system.writing import beside


@pytest.mark.parametrize(
    ("path", "expected"),
    [("out", "out.states"), ("a/out", "a/out.states"), ("/a/b", "/a/b.states"), ("/", "/root.states")],
)
def test_a_path_beside_another(path, expected):
    assert beside(Path(path), "{}.states") == Path(expected)


def test_the_current_folder_and_the_one_above_have_names(tmp_path, monkeypatch):
    inner = tmp_path / "runs" / "first"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert beside(Path(), "{}.states") == (tmp_path / "runs" / "first.states").resolve()
    assert beside(Path(".."), "{}.states") == (tmp_path / "runs.states").resolve()
