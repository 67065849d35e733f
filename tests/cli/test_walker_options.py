"""Options of the built-in walkers and of the evaluation: where they go, and what they do."""

import os
from pathlib import Path

import pytest

from qgait_ptq.cli.inputs import load_data
from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.config.schema import DataSource
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.walkers import loading
from qgait_ptq.system.progress import Silent


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """The folder of an empty cache, with few walkers to fill it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loading, "CALIBRATION_WALKERS", 1)
    monkeypatch.setattr(loading, "TEST_VIEWS", 1)
    return tmp_path / "qgait_ptq" / "walkers"


def test_they_are_entries_of_the_recipe():
    options = {"cache": False, "test_walkers": 6, "evaluate_simulation": True}
    recipe = build_recipe(Path("net.pt"), None, options)
    assert (recipe.data.cache, recipe.data.test_walkers) == (False, 6)
    assert recipe.quantization.evaluate_simulation
    usual = build_recipe(Path("net.pt"), None, dict.fromkeys(options))
    assert (usual.data.cache, usual.data.test_walkers) == (True, None)
    assert not usual.quantization.evaluate_simulation


def test_a_number_of_walkers_is_refused_beside_a_data_set(walkers_root):
    with pytest.raises(ConfigError, match=r"--test-walkers is for the built-in walkers only"):
        load_data(DataSource(root=walkers_root, test_walkers=4), Silent())


def test_walkers_are_kept_for_later_runs_unless_that_is_refused(cache_folder):
    without = loading.load_walkers(test_walkers=2, cache=False)
    assert not cache_folder.exists()
    first, second = (loading.load_walkers(test_walkers=2) for _ in range(2))
    assert len(os.listdir(cache_folder)) == 3
    assert len(without.test.subjects) == 2
    for data in (first, second):
        for (walk, record), (other, same) in zip(data.test, without.test, strict=True):
            assert record.name == same.name
            assert (walk == other).all()
