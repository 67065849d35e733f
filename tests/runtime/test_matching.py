import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.errors import ConfigError, DataError
from qgait_ptq.gait.metrics import part_distances
from qgait_ptq.runtime.matching import Matches, match


def embeddings(count, seed, parts=4, channels=6):
    return np.random.default_rng(seed).normal(size=(count, parts, channels)).astype(np.float32)


@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 8),
    st.sampled_from(["euclidean", "cosine"]),
    st.sampled_from([4, 64, 10**6]),
)
def test_matches_are_those_of_the_evaluators_distances_in_any_blocks(known, asked, top_k, metric, block):
    gallery, probes = embeddings(known, 1), embeddings(asked, 2)
    found = match(gallery, probes, top_k, metric, block_bytes=block)
    expected = part_distances(
        torch.from_numpy(probes).transpose(1, 2), torch.from_numpy(gallery).transpose(1, 2), metric
    ).numpy()
    top_k = min(top_k, known)
    assert found.indices.shape == found.distances.shape == (asked, top_k)
    order = np.argsort(expected, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_allclose(found.distances, np.take_along_axis(expected, order, 1), atol=2e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, found.indices, 1), found.distances, atol=2e-5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_faiss_finds_the_near_ones_with_the_same_distances(metric):
    gallery = embeddings(300, 3)
    probes = gallery[:20] + 0.01 * embeddings(20, 4)
    exact, found = (match(gallery, probes, 2, metric, index) for index in ("exact", "faiss"))
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(20))
    np.testing.assert_allclose(found.distances[:, 0], exact.distances[:, 0], atol=2e-3)


def in_one_direction(count, seed):
    """Embeddings whose distances are small against their norms, as after a bias in the last layer."""
    return np.float32(30) + np.float32(0.02) * embeddings(count, seed, channels=16)


def exact_distances(gallery, probes):
    differences = probes[:, None].astype(np.float64) - gallery[None]
    return np.linalg.norm(differences, axis=3).mean(2)


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_embeddings_in_nearly_one_direction_keep_their_digits_and_their_order(index):
    """Each part has a norm of 120; differences of squares would be off by 0.03 in a distance of 0.1."""
    gallery, probes = in_one_direction(100, 1), in_one_direction(30, 2)
    expected = exact_distances(gallery, probes)
    found = match(gallery, probes, 5, index=index)
    np.testing.assert_array_equal(found.indices, np.argsort(expected, axis=1)[:, :5])
    np.testing.assert_allclose(found.distances, np.sort(expected, axis=1)[:, :5], rtol=1e-5)


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_cosine_distances_in_nearly_one_direction_keep_their_digits(index):
    """They are near 4e-7. As 1 less a product of float32, they would be multiples of 6e-8."""
    gallery, probes = in_one_direction(100, 1), in_one_direction(30, 2)
    a, b = (one / np.linalg.norm(one, axis=2, keepdims=True) for one in map(np.float64, (gallery, probes)))
    expected = (1 - (b[:, None] * a[None]).sum(3)).mean(2)
    found = match(gallery, probes, 100 if index == "exact" else 5, "cosine", index)
    np.testing.assert_allclose(found.distances, np.sort(expected, 1)[:, : found.indices.shape[1]], rtol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(expected, found.indices, 1), found.distances, rtol=1e-3)


def test_an_embedding_without_a_direction_has_a_cosine_distance_of_one():
    gallery = embeddings(3, 1)
    gallery[0] = 0
    np.testing.assert_allclose(match(gallery, 0 * gallery[:1], 3, "cosine").distances, 1)
    found = match(gallery, embeddings(4, 2), 3, "cosine")
    assert (found.indices == 0).any(1).all()
    np.testing.assert_allclose(found.distances[found.indices == 0], 1, rtol=1e-6)


def test_the_evaluation_ranks_embeddings_in_nearly_one_direction_as_matching_does():
    gallery, probes = in_one_direction(100, 1), in_one_direction(30, 2)
    evaluated = part_distances(*(torch.from_numpy(one).transpose(1, 2) for one in (probes, gallery)))
    order = evaluated.argsort(dim=1, stable=True)[:, :5].numpy()
    np.testing.assert_array_equal(order, match(gallery, probes, 5).indices)


def test_nearly_equal_sequences_of_one_person_are_ordered_among_people_far_away():
    """Products cannot tell them apart: the mean of the gallery is far from each person."""
    person = np.concatenate([sign * 30 + 0.005 * embeddings(6, seed) for sign, seed in ((1, 1), (-1, 2))])
    gallery = person.astype(np.float32)
    probes = gallery + np.float32(0.001) * embeddings(12, 3)
    assert match(gallery, probes).indices[:, 0].tolist() == list(range(12))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_distance_depends_on_its_two_embeddings_only(metric):
    """Blocks, other probes and the index change no bit of it."""
    gallery, probes = embeddings(60, 1), embeddings(20, 2)
    whole = match(gallery, probes, 3, metric)
    alone = [match(gallery, probe, 3, metric) for probe in probes]
    for other in (
        match(gallery, probes, 3, metric, block_bytes=300),
        match(gallery, probes, 3, metric, index="faiss"),
        Matches(np.concatenate([m.indices for m in alone]), np.concatenate([m.distances for m in alone])),
    ):
        np.testing.assert_array_equal(other.indices, whole.indices)
        np.testing.assert_array_equal(other.distances, whole.distances)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_an_embedding_has_no_distance_to_itself(metric):
    gallery = 12 * embeddings(20, 1)
    assert match(gallery, gallery, metric=metric).distances.max() == 0


def test_embeddings_up_to_the_largest_value_have_finite_distances():
    gallery = np.full((3, 4, 4096), 1e15, np.float32)
    found = match(gallery, -gallery)
    np.testing.assert_allclose(found.distances, 2e15 * 64, rtol=1e-5)


def test_equal_distances_give_the_first_of_the_gallery():
    gallery = np.repeat(embeddings(1, 5), 4, axis=0)
    assert match(gallery, gallery[0], 3).indices.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("gallery", "probes", "options", "error", "message"),
    [
        (embeddings(0, 0), embeddings(1, 0), {}, DataError, "gallery is empty"),
        (embeddings(3, 0), embeddings(1, 0, parts=5), {}, DataError, "different networks"),
        (embeddings(3, 0), np.full((1, 4, 6), np.nan, np.float32), {}, DataError, "NaN"),
        (np.zeros((3, 4, 6), int), embeddings(1, 0), {}, DataError, "int64"),
        (embeddings(3, 0), np.full((1, 4, 6), 1e300), {}, DataError, "the probes: NaN, infinite values, or"),
        (1e16 * embeddings(3, 0), embeddings(1, 0), {}, DataError, r"the gallery: .*beyond ±1e\+15"),
        ([np.ones((4, 6)), np.ones((4, 5))], embeddings(1, 0), {}, DataError, "the gallery: not an array"),
        (embeddings(3, 0), embeddings(1, 0), {"top_k": 0}, ConfigError, "top_k is 0"),
        (embeddings(3, 0), embeddings(1, 0), {"top_k": 2.0}, ConfigError, r"top_k is 2\.0"),
        (embeddings(3, 0), embeddings(1, 0), {"metric": "manhattan"}, ConfigError, "unknown metric"),
        (embeddings(3, 0), embeddings(1, 0), {"index": "tree"}, ConfigError, "unknown index"),
    ],
)
def test_bad_input_is_refused(gallery, probes, options, error, message):
    with pytest.raises(error, match=message):
        match(gallery, probes, **options)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_whole_gallery_is_ranked_as_its_nearest_part_is(metric):
    """Distances of further matches come from products, which is far cheaper."""
    gallery, probes = embeddings(300, 5), embeddings(3, 6)
    everything, few = match(gallery, probes, 300, metric), match(gallery, probes, 20, metric)
    assert [sorted(row) for row in everything.indices.tolist()] == [list(range(300))] * 3
    np.testing.assert_array_equal(everything.indices[:, :20], few.indices)
    np.testing.assert_array_equal(everything.distances[:, :20], few.distances)
    assert (np.diff(everything.distances, axis=1) >= 0).all()
