"""Additions of quantized tensors: what kernels do, and scales with which all do the same."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qgait_ptq.quantizer.addition_orders import (
    Addition,
    Codes,
    align_scales,
    differing_pairs,
    find_multiples,
    fixed_point_sum,
    fused_sum,
    plain_sum,
)

SCALES = st.floats(-2, 2).map(lambda exponent: float(np.float32(10**exponent)))
TENSORS = st.builds(
    lambda scale, bits, share: Codes(scale, round(share * (2**bits - 1)), 0, 2**bits - 1),
    SCALES,
    st.sampled_from([3, 4, 8]),
    st.floats(0, 1),
)
ADDITION = Addition("a", "b", "y")
# A sum of 1.5 for codes 1 and 1: half to even gives 2, and so does half away from zero; 2.5 gives 2 and 3.
MIDDLES = (Codes(0.5, 0, 0, 255), Codes(1.0, 0, 0, 255), Codes(1.0, 0, 0, 255))


def exactly(left, right, of):
    """The sum as a fraction, and how close it is to the middle of two integers."""
    a, b, y = (Fraction(one.scale) for one in of)
    value = (left - of[0].zero_point) * a / y + (right - of[1].zero_point) * b / y
    return value, abs(value - (value.numerator // value.denominator) - Fraction(1, 2))


@pytest.mark.parametrize("kernel", [fused_sum, fixed_point_sum, plain_sum])
@given(of=st.tuples(TENSORS, TENSORS, TENSORS), data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_kernel_rounds_to_the_nearest_integer(kernel, of, data):
    left, right = (data.draw(st.integers(one.lowest, one.highest)) for one in of[:2])
    value, to_middle = exactly(left, right, of)
    assume(abs(value) < 2000)
    assume(to_middle > Fraction(1, 100))
    (found,) = kernel(np.array([left]), np.array([right]), of)
    assert found - of[2].zero_point == round(value)


def test_kernels_differ_in_the_middle_of_two_integers():
    one, four = np.array([1]), np.array([4])
    # 0.5 · 1 + 1 · 4 is 4.5
    assert fused_sum(one, four, MIDDLES) == 4
    assert plain_sum(one, four, MIDDLES) == 4
    assert fixed_point_sum(one, four, MIDDLES) == 5
    assert differing_pairs(*MIDDLES) > 0


def test_fixed_point_rounds_middles_away_from_zero():
    of = (replace(MIDDLES[0], zero_point=9), MIDDLES[1], MIDDLES[2])
    codes = np.arange(0, 18, 2)
    halves = (codes - 9) * 0.5
    expected = np.sign(halves) * np.floor(np.abs(halves) + 0.5)
    np.testing.assert_array_equal(fixed_point_sum(codes, np.zeros(9, int), of), expected)


@given(of=st.tuples(TENSORS, TENSORS, TENSORS))
@settings(max_examples=100, deadline=None)
def test_aligned_scales_are_close_and_make_all_kernels_agree(of):
    tensors = dict(zip("aby", of, strict=True))
    aligned = align_scales([ADDITION], tensors)
    largest = max(one.scale for one in of)
    if min(of[0].scale, of[1].scale) > of[2].scale / 100 and largest < 4 * of[2].scale:
        assert aligned.keys() == set("aby")
    moved = {name: replace(tensors[name], scale=scale) for name, scale in aligned.items()}
    for name, one in moved.items():
        assert one.scale == np.float32(one.scale)
        assert one.scale == pytest.approx(tensors[name].scale, rel=0.1)
    if moved:
        assert differing_pairs(*moved.values()) == 0
        assert align_scales([ADDITION], moved) == aligned


def test_aligning_twice_changes_nothing_where_terms_are_far_larger_than_the_sum():
    """The multiples are so large that float32 holds them to a part of a unit only."""
    tensors = {
        "a": Codes(1.0, 0, 0, 7),
        "b": Codes(68.41735076904297, 223, 0, 255),
        "y": Codes(0.025482967495918274, 0, 0, 255),
    }
    aligned = align_scales([ADDITION], tensors)
    moved = {name: replace(tensors[name], scale=scale) for name, scale in aligned.items()}
    assert aligned.keys() == tensors.keys()
    assert align_scales([ADDITION], moved) == aligned


def test_a_chain_of_additions_is_aligned_as_a_whole():
    names = ["a", "b", "c", "d", "e"]
    scales = [0.031, 0.017, 0.04, 0.009, 0.05]
    tensors = {name: Codes(scale, 3, 0, 255) for name, scale in zip(names, scales, strict=True)}
    chain = [Addition("a", "b", "c"), Addition("c", "d", "e")]
    assert any(differing_pairs(*(tensors[name] for name in one.tensors())) for one in chain)
    aligned = align_scales(chain, tensors)
    assert aligned.keys() == tensors.keys()
    for one in chain:
        assert differing_pairs(*(replace(tensors[name], scale=aligned[name]) for name in one.tensors())) == 0
    for name, scale in aligned.items():
        assert scale == pytest.approx(tensors[name].scale, rel=0.01)


@given(scales=st.lists(st.floats(0.01, 0.05), min_size=7, max_size=7))
@settings(max_examples=30, deadline=None)
def test_sums_are_odd_multiples_of_the_unit(scales):
    tensors = {name: Codes(scale, 0, 0, 15) for name, scale in zip("abcdefg", scales, strict=True)}
    chain = [Addition("a", "b", "c"), Addition("c", "d", "e"), Addition("e", "f", "g")]
    aligned = align_scales(chain, tensors)
    moved = {name: replace(tensors[name], scale=scale) for name, scale in aligned.items()}
    multiples = find_multiples(chain, moved)
    assert multiples.keys() == tensors.keys()
    for name in "ceg":
        assert round(aligned[name] / multiples[name].unit) % 2 == 1


def test_tensors_that_are_too_small_beside_their_sum_are_left_as_they_are():
    tensors = {"a": Codes(1e-5, 0, 0, 255), "b": Codes(1.0, 0, 0, 255), "y": Codes(1.0, 0, 0, 255)}
    assert align_scales([ADDITION], tensors) == {}


def test_tensors_of_other_additions_are_not_touched():
    tensors = {
        name: Codes(scale, 0, 0, 255) for name, scale in zip("abyuvw", (1, 1, 2, 1e-5, 1, 1), strict=True)
    }
    aligned = align_scales([ADDITION, Addition("u", "v", "w")], tensors)
    assert aligned.keys() == set("aby")
