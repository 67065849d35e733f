"""Two networks on the same people."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.gait.comparison import compare_distances, paired_difference
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord
from qgait_ptq.gait.metrics import part_distances
from qgait_ptq.gait.protocol_accuracy import evaluate_embeddings
from qgait_ptq.gait.protocols import PROTOCOLS, make_test_set

PERCENT = st.floats(0, 100)


@given(st.lists(st.tuples(PERCENT, PERCENT), min_size=1, max_size=20))
def test_the_interval_holds_the_mean_difference(pairs):
    first = {str(i): a for i, (a, _) in enumerate(pairs)}
    second = {str(i): b for i, (_, b) in enumerate(pairs)}
    found = paired_difference(first, second)
    assert found.mean == pytest.approx(np.mean([b - a for a, b in pairs]), abs=1e-9)
    assert found.low <= found.mean + 1e-9
    assert found.high >= found.mean - 1e-9
    assert found.identities == len(pairs)


def test_a_shift_of_everybody_has_no_spread():
    people = {str(i): float(i) for i in range(20)}
    found = paired_difference(people, {name: value - 3 for name, value in people.items()})
    assert (found.low, found.mean, found.high) == pytest.approx((-3, -3, -3))


def test_the_interval_is_that_of_the_bootstrap():
    rng = np.random.default_rng(1)
    change = rng.normal(size=400)
    people = {f"{i:03d}": 0.0 for i in range(400)}
    found = paired_difference(people, {f"{i:03d}": value for i, value in enumerate(change)})
    error = change.std() / np.sqrt(len(change))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def records(people=4, conditions=("nm-01", "nm-02", "nm-05", "bg-01"), views=("000", "090")):
    return [
        SequenceRecord(f"{person:03d}", condition, view, lambda: np.zeros((1, 2, 2), np.uint8))
        for person in range(people)
        for condition in conditions
        for view in views
    ]


def test_what_identities_contribute_averages_to_the_accuracy():
    """Everybody has as many probes of each set and view, so the means over identities are the means."""
    data = GaitDataset(records())
    embeddings = torch.randn(len(data), 6, 3, generator=torch.Generator().manual_seed(0))
    accuracy = evaluate_embeddings(embeddings, data.records, make_test_set(data, PROTOCOLS["casia-b"]))
    people = accuracy.identities.values()
    assert len(people) == 4
    assert np.mean([one.rank1 for one in people]) == pytest.approx(accuracy.rank1["mean"])
    precision = np.mean([one.average_precision for one in people])
    assert precision == pytest.approx(accuracy.mean_average_precision)


def test_histograms_count_every_pair_once_and_scatter_shows_real_distances():
    some = records(people=3)
    before = torch.randn(len(some), 4, 2, generator=torch.Generator().manual_seed(0))
    found = compare_distances(before, 2 * before, some, "euclidean", seed=0)
    for network in ("float", "quantized"):
        for kind in ("same", "different"):
            assert sum(found[network][kind]) == pytest.approx(1, abs=1e-4)
    for kind, same in (("same", True), ("different", False)):
        points = np.array(found["pairs"][kind])
        np.testing.assert_allclose(points[:, 1], 2 * points[:, 0], rtol=1e-3)
        distances = part_distances(before, before)
        labels = np.array([record.subject for record in some])
        allowed = distances.numpy()[np.equal.outer(labels, labels) == same]
        assert all(np.isclose(allowed, point, rtol=1e-3).any() for point in points[:10, 0])


def test_small_distances_keep_their_digits():
    """Cosine distances of embeddings in nearly one direction."""
    some = records(people=3)
    embeddings = 30 + 0.02 * torch.randn(len(some), 16, 3, generator=torch.Generator().manual_seed(0))
    compared = compare_distances(embeddings, embeddings, some, "cosine", seed=0)
    assert len(set(compared["edges"])) == len(compared["edges"])
    pairs = [distance for pair in compared["pairs"]["different"] for distance in pair]
    assert 1e-7 < min(pairs) < max(pairs) < 1e-6


def test_one_person_alone_makes_a_page_possible():
    some = records(people=1)
    before = torch.randn(len(some), 4, 2)
    found = compare_distances(before, before, some, "euclidean", seed=0)
    assert found["pairs"]["different"] == []
    assert sum(found["float"]["different"]) == 0
