from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sampling import PKSampler, draw_frames, to_network_input
from qgait_ptq.gait.embedding import embed_dataset


@given(st.lists(st.integers(1, 6), min_size=3, max_size=8), st.integers(1, 4), st.integers(0, 99))
def test_a_batch_has_p_identities_with_k_sequences_each(counts, sequences, seed):
    labels = [f"p{i}" for i, count in enumerate(counts) for _ in range(count)]
    batch = PKSampler(labels, 3, sequences).draw(np.random.default_rng(seed))
    assert Counter(Counter(labels[i] for i in batch).values()) == {sequences: 3}
    for name in {labels[i] for i in batch}:
        drawn = [i for i in batch if labels[i] == name]
        if labels.count(name) >= sequences:
            assert len(set(drawn)) == sequences


def test_too_few_identities_are_an_error():
    with pytest.raises(DataError, match="batch of 4 identities"):
        PKSampler(["a", "b"], 4, 2)


@given(st.integers(1, 20), st.integers(1, 30))
def test_frames_come_in_order_and_repeat_only_where_too_few(available, count):
    sequence = np.arange(available, dtype=np.uint8)[:, None, None]
    drawn = draw_frames(sequence, count, np.random.default_rng(0))[:, 0, 0].astype(int)
    assert len(drawn) == count
    assert (np.diff(drawn) >= 0).all()
    if available >= count:
        assert (np.diff(drawn) > 0).all()


def test_network_input_is_float_between_zero_and_one():
    given_input = to_network_input(np.array([[[0, 51, 255]]], np.uint8))
    assert given_input.dtype == torch.float32
    assert given_input.flatten().tolist() == pytest.approx([0, 0.2, 1])


def test_each_sequence_is_read_once_for_all_networks():
    reads = Counter()

    class Counting(GaitDataset):
        def __getitem__(self, index):
            reads[index] += 1
            return super().__getitem__(index)

    walk = np.full((3, 64, 44), 255, np.uint8)
    data = Counting(GaitDataset.from_pairs([(walk, "a"), (walk[:1], "b")]).records)
    frames, pixels = embed_dataset(
        data, [lambda b: b.sum((2, 3)).amax(1, keepdim=True), lambda b: b.mean((1, 2))], (64, 44)
    )
    assert reads == {0: 1, 1: 1}
    assert frames.shape == (2, 1, 1)
    assert pixels.shape == (2, 44, 1)


def test_long_sequences_are_embedded_with_all_frames_as_the_embedder_does():
    walk = np.full((900, 4, 4), 255, np.uint8)
    (counts,) = embed_dataset(
        GaitDataset.from_pairs([(walk, "a")]), [lambda b: b.mean((2, 3)).sum(1, keepdim=True)], (4, 4)
    )
    assert counts.item() == 900


def test_another_size_is_an_error_that_names_the_sequence():
    data = GaitDataset.from_pairs([(np.full((3, 32, 22), 255, np.uint8), "a")])
    with pytest.raises(DataError, match=r"a/seq-0000/000.*32×22"):
        embed_dataset(data, [lambda b: b.mean((1, 2))], (64, 44))
