"""Two processes and one: the same embeddings, ranges, accuracy and training steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.processes import VARIABLES, announced
from tests.system import shared_work
from tests.system.shared_work import CLIPS, STEPS, WORK, Walks, train
from tests.system.torchrun import torchrun


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of both processes, by the name of the work."""
    folder = tmp_path_factory.mktemp("processes")
    done = torchrun(Path(shared_work.__file__), folder, folder=folder)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_equal(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_lists_are_divided_and_values_come_in_the_order_of_the_processes(results):
    for result in results:
        found = result["exchanges"]
        assert found["shares"] == [([0, 1], []), ([2, 3, 4], [7])]
        assert found["of the first"] == 0
        assert found["rows"].tolist() == [[5.0], [5.0]]
        assert math.isnan(found["NaN in one"])


def test_gradients_are_means_and_one_that_no_process_has_stays_away(results):
    for result in results:
        both, one, none = result["exchanges"]["gradients"]
        assert both.tolist() == [1.5, 2.5]
        assert one.tolist() == [2.0, 4.0]
        assert none is None


def test_two_processes_embed_as_one(results):
    for result in results:
        for name, expected in WORK["embeddings"]().items():
            assert_equal(result["embeddings"][name].embeddings, expected.embeddings)
            assert result["embeddings"][name].kept == expected.kept
            assert result["embeddings"][name].refused == expected.refused


@pytest.mark.parametrize("name", ["ranges", "accuracy"])
def test_two_processes_give_the_bytes_of_one(results, name):
    expected = WORK[name]()
    for result in results:
        assert_equal(result[name], expected)


def test_a_training_step_differs_by_the_order_of_sums_only(results):
    assert_equal(results[0]["training"], results[1]["training"])
    halves, whole = train(Walks(), CLIPS // 2), train(Walks(), CLIPS)
    assert_equal(results[0]["training"], halves)  # one process that adds the same two gradients
    torch.testing.assert_close(halves["values"], whole["values"], rtol=1e-4, atol=1e-6)


def test_a_network_of_one_batch_size_is_trained_in_each_process(results):
    for result in results:
        assert_equal(result["training with a fixed batch"], train(Walks(), CLIPS))


def test_a_nan_in_the_clips_of_one_process_stops_both(results):
    for result in results:
        assert result["training to NaN"]["diverged"]
        assert result["training to NaN"]["steps"] == 1
        assert not result["training"]["diverged"]
        assert result["training"]["steps"] == STEPS


def test_variables_that_are_no_numbers_are_refused(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "many")
    with pytest.raises(ConfigError, match="RANK='many'"):
        announced()
