"""Walkers in the user's cache: the same as rendered ones, whatever happens to the files."""

import os

import numpy as np
import pytest

from qgait_ptq.gait.walkers.cached import decode_walks, encode_walks, open_walker_cache, walker_key
from qgait_ptq.gait.walkers.population import TRIALS, Condition, WalkerSettings
from qgait_ptq.gait.walkers.rendering import render_identities

TRIAL = ((Condition.NORMAL, 1),)
SETTINGS = WalkerSettings(shortest=4, longest=6)


@pytest.fixture
def notes():
    return []


@pytest.fixture
def cache(tmp_path, monkeypatch, notes):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return open_walker_cache(notes.append)


def render(cache, identities=(5, 6)):
    return list(render_identities(identities, SETTINGS, TRIAL, 2, cache=cache))


def are_equal(first, second):
    return all(
        a[0] == b[0] and np.array_equal(a[1], b[1])
        for left, right in zip(first, second, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_cached_walkers_are_the_rendered_ones(cache):
    rendered = render(None)
    assert are_equal(render(cache), rendered)
    assert len(os.listdir(cache.folder)) == 2
    assert are_equal(render(cache), rendered)
    assert are_equal(render(cache, (6, 7, 5)), render(None, (6, 7, 5)))


def test_without_a_cache_nothing_is_written(cache):
    render(None)
    assert not cache.folder.exists()


def test_a_damaged_file_is_noted_and_rendered_again(cache, notes):
    render(cache)
    damaged = next(cache.folder.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert are_equal(render(cache), render(None))
    assert len(notes) == 1
    assert damaged.name in notes[0]
    assert are_equal(render(cache), render(None))
    assert len(notes) == 1


def test_a_folder_that_cannot_be_written_is_noted_once(tmp_path, monkeypatch, notes):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert are_equal(render(open_walker_cache(notes.append)), render(None))
    assert len(notes) == 1
    assert "nothing is cached" in notes[0]


def test_every_parameter_is_in_the_key():
    keys = [
        walker_key(1, WalkerSettings(), TRIALS, 11),
        walker_key(2, WalkerSettings(), TRIALS, 11),
        walker_key(1, WalkerSettings(noise=0.7), TRIALS, 11),
        walker_key(1, WalkerSettings(), TRIALS[:9], 11),
        walker_key(1, WalkerSettings(), TRIALS, 10),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == walker_key(1, WalkerSettings(), TRIALS, 11)


def test_encoded_walks_are_small_and_decoded_to_the_same():
    (walks,) = render(None, (8,))
    content = encode_walks(walks)
    assert are_equal([decode_walks(content)], [walks])
    assert len(content) < sum(silhouettes.size for _, silhouettes in walks) / 8
