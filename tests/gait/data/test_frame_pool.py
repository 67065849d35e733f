"""The frames that fine-tuning draws its clips from."""

import numpy as np
import pytest

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.frame_pool import collect_frames

LENGTHS = (3, 40, 9)


def walks(lengths=LENGTHS, shape=(16, 11)):
    """Sequences whose frame t of sequence i has the value 50 i + t in one corner."""
    made = []
    for index, length in enumerate(lengths):
        walk = np.zeros((length, *shape), np.uint8)
        walk[:, 0, 0] = 50 * index + np.arange(length)
        walk[:, 1, 1] = 255
        made.append((walk, f"person {index}"))
    return GaitDataset.from_pairs(made)


def pool_of(data, longest=8, memory_mb=1.0, seed=0):
    return collect_frames(data, np.arange(len(data)), longest, (16, 11), memory_mb, seed)


def test_each_sequence_gives_a_stretch_of_consecutive_frames():
    pool = pool_of(walks())
    assert len(pool) == 3
    assert pool.stretches[:, 1].tolist() == [3, 8, 8]
    for index, (start, length) in enumerate(pool.stretches):
        marks = pool.frames[start : start + length, 0, 0].astype(int)
        assert (np.diff(marks) == 1).all()
        assert (marks // 50 == index).all()


@pytest.mark.parametrize("consecutive", [False, True])
def test_clips_have_frames_of_one_sequence_in_order(consecutive):
    pool = pool_of(walks())
    for seed in range(20):
        clips = pool.draw(np.random.default_rng(seed), 3, 3, consecutive=consecutive)
        marks = clips[:, :, 0, 0].astype(int)
        assert clips.shape == (3, 3, 16, 11)
        assert sorted((marks // 50)[:, 0]) == [0, 1, 2]
        assert (marks // 50 == (marks // 50)[:, :1]).all()
        assert (np.diff(marks) == 1).all() if consecutive else (np.diff(marks) > 0).all()


def test_a_shorter_sequence_repeats_frames_in_a_circle_if_they_follow_each_other():
    pool = pool_of(walks((3,)))
    marks = pool.draw(np.random.default_rng(0), 2, 7, consecutive=True)[:, :, 0, 0]
    assert marks.tolist() == [[0, 1, 2, 0, 1, 2, 0]] * 2


def test_a_large_pool_is_on_disk_and_draws_the_same_clips():
    small, large = pool_of(walks()), pool_of(walks(), memory_mb=0.001)
    assert (small.on_disk, large.on_disk) == (False, True)
    for seed in range(5):
        drawn = [p.draw(np.random.default_rng(seed), 4, 5, consecutive=False) for p in (small, large)]
        assert np.array_equal(*drawn)


def test_chosen_sequences_keep_their_order_and_their_labels():
    pool = pool_of(walks()).take(np.array([2, 0, 1]))
    assert pool.labels.tolist() == [2, 0, 1]
    clips = pool.clips_of(np.array([1, 0]), np.random.default_rng(0), 3, consecutive=True)
    assert (clips[:, 0, 0, 0] // 50).tolist() == [0, 2]


def test_the_seed_decides_the_places():
    first, same, other = (pool_of(walks(), seed=seed).frames for seed in (0, 0, 1))
    assert np.array_equal(first[:19], same[:19])
    assert not np.array_equal(first[:19], other[:19])


def test_another_frame_size_and_an_empty_set_are_refused():
    with pytest.raises(
        DataError, match=r"seq-0000/000: silhouettes of 8×6, but the network takes 16×11; resize"
    ):
        pool_of(walks((5,), (8, 6)))
    with pytest.raises(DataError, match="no sequence to fine-tune on"):
        pool_of(GaitDataset([]))
