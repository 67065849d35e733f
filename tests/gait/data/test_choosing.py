"""Choosing sequences: the same choice as before for each seed, with few looks at each record."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord


def reference(records, count, seed):
    """Choose as version 0.1 did, with time that grows with identities × sequences."""
    rng = np.random.default_rng(seed)
    subjects = sorted({record.subject for record in records})
    queues = [
        list(rng.permutation([i for i, r in enumerate(records) if r.subject == subject]))
        for subject in rng.permutation(subjects)
    ]
    chosen = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(int(queue.pop()))
    return [records[i] for i in sorted(chosen)]


def record_of(subject, number):
    return SequenceRecord(subject, "nm-01", str(number), lambda: np.zeros((1, 64, 44), np.uint8))


@given(
    st.lists(st.sampled_from(["anna", "ben", "步态", "7", "10"]), max_size=40), st.integers(0, 45), st.data()
)
def test_the_choice_is_that_of_the_reference(subjects, count, data):
    seed = data.draw(st.integers(0, 2**32))
    records = [record_of(subject, number) for number, subject in enumerate(subjects)]
    assert GaitDataset(records).choose(count, seed).records == reference(records, count, seed)


def test_many_identities_with_unequal_numbers_of_sequences_are_chosen_as_by_the_reference():
    records = [record_of(f"{number % (1 + number % 97):03d}", number) for number in range(1000)]
    for count in (1, 128, 999, 2000):
        assert GaitDataset(records).choose(count, 3).records == reference(records, count, 3)


@given(st.lists(st.integers(0, 30), max_size=120), st.integers(0, 130), st.integers(1, 4), st.integers(0, 99))
def test_sequences_of_one_identity_are_drawn_together(subjects, count, together, seed):
    records = [record_of(f"{subject:02d}", number) for number, subject in enumerate(subjects)]
    chosen = GaitDataset(records).choose(count, seed, together=together).records
    assert len(chosen) == min(count, len(records))
    assert len({record.name for record in chosen}) == len(chosen)
    of_each, of_chosen = Counter(subjects), Counter(int(record.subject) for record in chosen)
    several = [subject for subject, number in of_each.items() if number >= together]
    served = [subject for subject in several if of_chosen[subject] >= together]
    assert len(served) >= min(len(several), count // together)


def test_of_many_identities_fewer_are_drawn_with_two_sequences_each():
    """One sequence of each teaches nothing about distances between people."""
    records = [record_of(f"{number // 2:03d}", number) for number in range(2000)]
    chosen = GaitDataset(records).choose(128, together=2)
    assert set(Counter(record.subject for record in chosen.records).values()) == {2}
    assert len(GaitDataset(records).choose(128).subjects) == 128


def test_an_identity_whose_name_ends_with_a_zero_byte_is_chosen():
    records = [record_of("anna\0", 0), record_of("ben", 1)]
    assert GaitDataset(records).choose(2).records == records


class Counting:
    """A record that counts how often its identity is asked for."""

    looks = 0

    def __init__(self, subject):
        self._subject = subject

    @property
    def subject(self):
        Counting.looks += 1
        return self._subject


def test_each_record_is_looked_at_a_fixed_number_of_times():
    """The former algorithm looked at each record once for every identity: 40 million looks here."""
    Counting.looks = 0
    records = [Counting(f"{number // 2:05d}") for number in range(2 * 2000)]
    assert len(GaitDataset(records, "many").choose(128)) == 128
    assert Counting.looks <= 2 * len(records)
