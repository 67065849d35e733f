"""How sequences of any length are brought to the frame counts that a network takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.errors import DataError
from qgait_ptq.graph.frame_counts import ANY_FRAME_COUNT, FrameCounts, parse_frame_counts

counts = st.builds(
    lambda shortest, more, repeats: FrameCounts(
        shortest,
        None if more is None else shortest + more,
        {k: v for k, v in repeats.items() if k < shortest},
    ),
    st.integers(1, 40),
    st.none() | st.integers(0, 40),
    st.dictionaries(st.integers(1, 39), st.integers(2, 40), max_size=4),
)


@given(counts, st.integers(1, 200))
def test_indices_are_frames_of_the_sequence_and_a_count_that_is_taken_stays_as_it_is(taken, count):
    if not taken.fits(count):
        with pytest.raises(DataError, match=f"{count} frames; the network is captured for"):
            taken.indices(count)
        return
    indices = taken.indices(count)
    assert set(indices.tolist()) <= set(range(count))
    if taken.takes(count):
        assert indices.tolist() == list(range(count))
    elif taken.fixed is not None:
        assert len(indices) == taken.fixed
    else:
        assert indices.tolist() == list(range(count)) * taken.repeats[count]


@given(counts, st.integers(0, 200))
def test_the_nearest_count_is_taken_and_none_is_nearer(taken, count):
    nearest = taken.nearest(count)
    assert taken.takes(nearest)
    assert not any(taken.takes(c) for c in range(1, 300) if abs(c - count) < abs(nearest - count))


@given(counts)
def test_counts_survive_the_metadata_of_a_file(taken):
    assert parse_frame_counts(taken.describe(), taken.fixed) == (
        FrameCounts.exactly(taken.fixed) if taken.fixed is not None else taken
    )


def test_files_of_older_versions_take_what_their_input_says():
    assert parse_frame_counts(None, None) == ANY_FRAME_COUNT
    assert parse_frame_counts(None, 30) == FrameCounts(30, 30)


def test_one_frame_count_repeats_shorter_sequences_in_a_circle_and_cuts_longer_ones():
    frames = np.arange(12)
    assert FrameCounts.exactly(5).fit(frames).tolist() == [0, 1, 2, 3, 4]
    assert FrameCounts.exactly(5).fit(frames[:2]).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("taken", "text"),
    [
        (ANY_FRAME_COUNT, "any number of frames"),
        (FrameCounts(30, 30), "30 frames only"),
        (FrameCounts(4), "4 frames or more"),
        (FrameCounts(1, 40), "1 to 40 frames"),
        (FrameCounts(3, None, {1: 3, 2: 2}), "3 frames or more (sequences of 1, 2 are repeated"),
    ],
)
def test_counts_say_what_they_are(taken, text):
    assert str(taken).startswith(text)
