"""The first good candidate, and the order in which widths are raised."""

from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.mixed_precision.groups import Kind, WidthGroup
from qgait_ptq.mixed_precision.search import Candidate, first_good, raise_widths


@given(st.integers(1, 60), st.integers(0, 70))
def test_the_first_good_candidate_is_found_in_few_looks(count, threshold):
    candidates = [Candidate((position,)) for position in range(count)]
    looks = []

    def good(candidate):
        looks.append(candidate)
        return candidate.widths[0] >= threshold

    found = first_good(candidates, good)
    assert found == (threshold if threshold < count else None)
    assert len(looks) == len(set(looks)) <= 2 * count.bit_length() + 2


GROUPS = [
    WidthGroup(Kind.WEIGHTS, ("a",), ("a",)),
    WidthGroup(Kind.WEIGHTS, ("b",), ("b",)),
    WidthGroup(Kind.ACTIVATIONS, ("b",), ("b_input",)),
]
DAMAGES = [{4: 1.0, 8: 0.1}, {4: 5.0, 6: 1.0, 8: 0.5}, {4: 3.0, 8: 0.2}]


def test_the_most_damaging_is_raised_first():
    widths = [candidate.widths for candidate in raise_widths((4, 4, 4), GROUPS, DAMAGES)]
    assert widths[:5] == [(4, 4, 4), (4, 6, 4), (4, 6, 8), (8, 6, 8), (8, 8, 8)]


def test_after_the_widest_come_layers_in_float_the_worst_first_and_one_is_left():
    last = raise_widths((4, 4, 4), GROUPS, DAMAGES)[5:]
    assert last == [Candidate((8, 8, 8), ("b",))]
