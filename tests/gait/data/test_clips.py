"""Clips for learning: lengths, copies, held-out people."""

import numpy as np
import pytest

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.clips import cut_clips, split_identities_off
from qgait_ptq.gait.data.dataset import GaitDataset


def walk(frames, first=0):
    """Frames that carry their number in their upper half."""
    silhouettes = np.full((frames, 64, 44), 255, np.uint8)
    silhouettes[:, :32] = (first + np.arange(frames, dtype=np.uint8))[:, None, None]
    return silhouettes


def test_clips_are_consecutive_frames_and_short_sequences_go_in_circles():
    data = GaitDataset.from_pairs([(walk(30), "anna"), (walk(3, 100), "ben")])
    clips = cut_clips(data, 8, (64, 44), seed=0)
    numbers = clips.silhouettes[:, :, 0, 0].int()
    assert clips.silhouettes.shape == (2, 8, 64, 44)
    assert (numbers[0].diff() == 1).all()
    assert sorted(set(numbers[1].tolist())) == [100, 101, 102]
    assert clips.labels.tolist() == [0, 1]
    again = cut_clips(data, 8, (64, 44), seed=0).silhouettes
    assert (again == clips.silhouettes).all()


def test_copies_are_left_out_and_counted():
    data = GaitDataset.from_pairs([(walk(9), "anna"), (walk(9), "anna"), (walk(9, 50), "ben")])
    clips = cut_clips(data, 4, (64, 44), seed=0)
    assert (clips.copies, clips.subjects) == (1, ["anna", "ben"])


def test_one_sequence_under_two_names_is_refused():
    data = GaitDataset.from_pairs([(walk(9), "anna"), (walk(9), "ben")])
    with pytest.raises(DataError, match=r"ben.*anna.*two identities"):
        cut_clips(data, 4, (64, 44), seed=0)


def test_another_size_is_refused():
    data = GaitDataset.from_pairs([(walk(9), "anna")])
    with pytest.raises(DataError, match="64×44"):
        cut_clips(data, 4, (32, 22), seed=0)


def test_held_out_people_are_no_one_elses():
    subjects = [f"{i % 12:02d}" for i in range(36)] + ["single"]
    learned, held_out = split_identities_off(subjects, 0.25, seed=3)
    people = {subjects[i] for i in learned}, {subjects[i] for i in held_out}
    assert not people[0] & people[1]
    assert (len(people[0]), len(people[1])) == (9, 3)
    assert "single" not in people[0] | people[1]
    assert split_identities_off(subjects, 0.25, seed=3) == (learned, held_out)
    assert split_identities_off(subjects, 0.25, seed=4) != (learned, held_out)


@pytest.mark.parametrize("subjects", [["a"] * 20, [str(i) for i in range(20)], ["a", "a", "b", "b"]])
def test_too_few_people_are_refused_with_their_number(subjects):
    with pytest.raises(DataError, match=r"identities.* needs 8"):
        split_identities_off(subjects, 0.25, seed=0)
