"""Groups of sequences of equal shape."""

import torch

from qgait_ptq.gait.equal_lengths import in_equal_shapes


def numbers(lengths, **limits):
    sequences = [(number, torch.zeros(1, length, 4, 4)) for number, length in enumerate(lengths)]
    return [[number for number, _ in group] for group in in_equal_shapes(sequences, **limits)]


def test_sequences_of_equal_length_are_grouped_and_the_rest_follow():
    assert numbers([5, 6, 5, 6, 7], batch_frames=12) == [[0, 2], [1, 3], [4]]


def test_a_group_has_at_most_so_many_frames():
    assert numbers([5] * 5, batch_frames=12) == [[0, 1], [2, 3], [4]]
    assert numbers([5, 5], batch_frames=4) == [[0], [1]]


def test_without_frames_each_sequence_is_a_group_of_its_own():
    assert numbers([5, 5, 5], batch_frames=0) == [[0], [1], [2]]


def test_the_largest_group_is_given_early_where_too_much_would_wait():
    values = 16 * 5  # of a sequence of 5 frames
    given = numbers([5, 5, 6, 7, 5], batch_frames=100, waiting_values=4 * values)
    assert given == [[0, 1], [2], [3], [4]]


def test_shapes_are_not_mixed():
    sequences = [(0, torch.zeros(1, 5, 4, 4)), (1, torch.zeros(1, 5, 2, 4, 4))]
    assert [len(group) for group in in_equal_shapes(sequences)] == [1, 1]
