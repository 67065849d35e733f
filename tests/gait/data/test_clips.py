"""Clips for learning: lengths, copies, held-out people."""

import numpy as np
import pytest

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.clips import cut_clips, split_identities_off
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.graph.frame_counts import FrameCounts


def walk(frames, first=0):
    """Frames that carry their number in their upper half."""
    silhouettes = np.full((frames, 64, 44), 255, np.uint8)
    silhouettes[:, :32] = (first + np.arange(frames, dtype=np.uint8))[:, None, None]
    return silhouettes


def test_clips_are_consecutive_frames():
    data = GaitDataset.from_pairs([(walk(30), "anna"), (walk(20, 100), "ben")])
    clips = cut_clips(data, 8, (64, 44), seed=0)
    numbers = clips.silhouettes[:, :, 0, 0].int()
    assert clips.silhouettes.shape == (2, 8, 64, 44)
    assert (numbers.diff() == 1).all()
    assert clips.labels.tolist() == [0, 1]
    again = cut_clips(data, 8, (64, 44), seed=0).silhouettes
    assert (again == clips.silhouettes).all()


@pytest.mark.parametrize(
    ("lengths", "clip", "short"),
    [((12, 13, 15), 12, 0), ((40, 40, 3), 30, 1), ((40, 40, 20), 20, 0), ((3, 3, 3), 3, 0)],
)
def test_no_clip_is_longer_than_its_sequence(lengths, clip, short):
    pairs = [(walk(length, 50 * index), f"p{index}") for index, length in enumerate(lengths)]
    clips = cut_clips(GaitDataset.from_pairs(pairs), 30, (64, 44), seed=0)
    assert (clips.silhouettes.shape[1], clips.short) == (clip, short)
    assert (clips.silhouettes[:, :, 0, 0].int().diff() == 1).all()


def test_a_network_of_one_frame_count_gets_short_sequences_in_circles():
    data = GaitDataset.from_pairs([(walk(30), "anna"), (walk(3, 100), "ben")])
    clips = cut_clips(data, 60, (64, 44), seed=0, counts=FrameCounts.exactly(8))
    numbers = clips.silhouettes[:, :, 0, 0].int()
    assert clips.silhouettes.shape == (2, 8, 64, 44)
    assert numbers[1].tolist() == [100, 101, 102] * 2 + [100, 101]


def test_copies_are_left_out_and_counted():
    data = GaitDataset.from_pairs([(walk(9), "anna"), (walk(9), "anna"), (walk(9, 50), "ben")])
    clips = cut_clips(data, 4, (64, 44), seed=0)
    assert (clips.copies, clips.subjects) == (1, ["anna", "ben"])
    data = GaitDataset.from_pairs([(walk(9), "set/anna"), (walk(9), "set/anna")])
    assert cut_clips(data, 4, (64, 44), seed=0).copies == 1


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
