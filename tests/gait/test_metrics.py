import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.metrics import (
    decibels,
    distance_rows,
    embedding_cosine,
    embedding_sqnr,
    part_distances,
    rank_gallery,
)


def random_embeddings(count, seed=0, channels=5, parts=3):
    return torch.randn(count, channels, parts, generator=torch.Generator().manual_seed(seed))


def test_euclidean_is_the_mean_over_parts_of_the_norm():
    a, b = random_embeddings(4), random_embeddings(6, 1)
    expected = (a[:, None] - b[None]).norm(dim=2).mean(-1)
    torch.testing.assert_close(part_distances(a, b), expected)


def test_cosine_is_the_mean_over_parts_of_one_minus_the_cosine():
    a, b = random_embeddings(4), random_embeddings(6, 1)
    cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(part_distances(a, b, "cosine"), 1 - cosine.mean(-1))


def in_one_direction(count, seed, distance=30.0):
    """Embeddings whose distances are small against their norms, as after a bias in the last layer."""
    return distance + 0.02 * random_embeddings(count, seed, channels=16)


def test_euclidean_keeps_its_digits_for_embeddings_in_nearly_one_direction():
    """Each part has a norm of 120; differences of squares would be off by 0.03 in a distance of 0.1."""
    a, b = in_one_direction(40, 1), in_one_direction(50, 2)
    expected = (a.double()[:, None] - b.double()[None]).norm(dim=2).mean(-1).float()
    torch.testing.assert_close(part_distances(a, b), expected, rtol=1e-4, atol=0)
    rows = torch.cat([distances for _, distances in distance_rows(a, b, chunk_bytes=60)])
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=0)


def test_cosine_keeps_its_digits_for_embeddings_in_nearly_one_direction():
    """Distances are near 4e-7. As 1 less a product of float32, they would be multiples of 6e-8."""
    a, b = in_one_direction(40, 1), in_one_direction(50, 2)
    expected = 1 - torch.nn.functional.cosine_similarity(a.double()[:, None], b.double()[None], dim=2)
    expected = expected.mean(-1).float()
    torch.testing.assert_close(part_distances(a, b, "cosine"), expected, rtol=1e-3, atol=0)
    rows = torch.cat([distances for _, distances in distance_rows(a, b, "cosine", chunk_bytes=60)])
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("length", [0.0, 1e-14, 1e30])
def test_a_part_without_a_direction_has_a_cosine_distance_of_one(length):
    """The length of 1e30 exceeds float32 when it is squared."""
    a, b = random_embeddings(3, parts=1), random_embeddings(2, 1, parts=1)
    a[0], b[1] = length, 0.0
    found = part_distances(a, b, "cosine")
    assert found[0].tolist() == pytest.approx([1, 1], abs=0.02)
    assert found[:, 1].tolist() == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_an_embedding_that_is_not_finite_spoils_its_own_distances_only(metric):
    a, b = random_embeddings(4), random_embeddings(6, 1)
    expected = part_distances(a, b, metric)
    b[2, 0, 1], b[3, 1, 0] = torch.nan, torch.inf
    others = [0, 1, 4, 5]
    torch.testing.assert_close(part_distances(a, b, metric)[:, others], expected[:, others])


def test_an_unknown_metric_is_refused():
    """It was Euclidean otherwise."""
    with pytest.raises(ConfigError, match="unknown metric 'Cosine'; choose euclidean or cosine"):
        part_distances(random_embeddings(4), random_embeddings(6, 1), "Cosine")


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 400), st.sampled_from(["euclidean", "cosine"]))
def test_blocks_make_up_the_whole_matrix(probes, gallery, chunk_bytes, metric):
    a, b = random_embeddings(probes), random_embeddings(gallery, 1)
    rows = torch.cat([distances for _, distances in distance_rows(a, b, metric, chunk_bytes)])
    torch.testing.assert_close(rows, part_distances(a, b, metric))


def naive_metrics(distances, matches):
    """Rank, average precision and inverse negative penalty of one probe, spelled out."""
    hits = matches[np.argsort(distances, kind="stable")]
    positions = np.flatnonzero(hits) + 1
    precision = [(i + 1) / position for i, position in enumerate(positions)]
    return positions[0] - 1, np.mean(precision), len(positions) / positions[-1]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_ranking_follows_the_definitions(seed, gallery):
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 6, (5, gallery)).astype(np.float32)  # with ties
    matches = rng.random((5, gallery)) < 0.4
    matches[:, rng.integers(gallery)] = True
    ranking = rank_gallery(torch.from_numpy(distances), torch.from_numpy(matches))
    for probe in range(5):
        rank, precision, penalty = naive_metrics(distances[probe], matches[probe])
        assert ranking.match_rank[probe] == rank
        assert float(ranking.average_precision[probe]) == pytest.approx(precision)
        assert float(ranking.inverse_negative_penalty[probe]) == pytest.approx(penalty)


def test_probes_without_a_match_count_nowhere():
    distances = torch.tensor([[0.1, 0.2], [0.1, 0.2]])
    matches = torch.tensor([[False, True], [False, False]])
    ranking = rank_gallery(distances, matches)
    assert ranking.rank(1) == 0
    assert ranking.rank(2) == 100
    assert ranking.mean_average_precision() == 50


def test_sequences_that_are_not_admitted_are_neither_found_nor_in_the_way():
    distances = torch.tensor([[0.1, 0.2, 0.3]])
    matches = torch.tensor([[False, True, True]])
    ranking = rank_gallery(distances, matches, torch.tensor([[False, True, True]]))
    assert ranking.rank(1) == 100
    assert ranking.mean_average_precision() == 100


def test_cmc_never_falls():
    distances = torch.rand(30, 40, generator=torch.Generator().manual_seed(0))
    curve = rank_gallery(distances, distances.argsort(1) < 3).cmc()
    assert all(a <= b for a, b in itertools.pairwise(curve))


def test_sqnr_of_a_tenth_of_noise_is_twenty_decibels():
    reference = random_embeddings(3)
    assert embedding_sqnr(reference, reference * 1.1) == pytest.approx(20, abs=1e-3)
    assert embedding_sqnr(reference, reference) == 200
    assert decibels(0.0, 0.0) == decibels(1e300, 1e-300) == 200
    assert decibels(0.0, 1.0) == decibels(1e-300, 1e300) == -200


def test_embedding_cosine_is_taken_over_all_parts():
    reference = random_embeddings(3)
    assert torch.allclose(embedding_cosine(reference, 2 * reference), torch.ones(3, dtype=torch.float64))


def test_embeddings_of_zeros_agree_with_each_other_only():
    """A network whose last ReLU lets nothing pass gives them for blank silhouettes."""
    zeros, others = torch.zeros(2, 5, 3), random_embeddings(2)
    assert embedding_cosine(zeros, zeros).tolist() == [1, 1]
    assert embedding_cosine(zeros, others).tolist() == [0, 0]
    assert embedding_cosine(others, zeros).tolist() == [0, 0]
    assert embedding_cosine(1e-20 * others, others).tolist() == pytest.approx([1, 1])
    assert torch.isnan(embedding_cosine(zeros, torch.full_like(zeros, torch.nan))).all()
