import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.errors import ConfigError, DataError
from qgait_ptq.gait.metrics import part_distances
from qgait_ptq.runtime.matching import match


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
        (embeddings(3, 0), embeddings(1, 0), {"top_k": 0}, ConfigError, "top_k is 0"),
        (embeddings(3, 0), embeddings(1, 0), {"metric": "manhattan"}, ConfigError, "unknown metric"),
        (embeddings(3, 0), embeddings(1, 0), {"index": "tree"}, ConfigError, "unknown index"),
    ],
)
def test_bad_input_is_refused(gallery, probes, options, error, message):
    with pytest.raises(error, match=message):
        match(gallery, probes, **options)
