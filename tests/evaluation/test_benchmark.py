"""Benchmarks: calls are timed in turn, and a busy machine is noticed."""

import pytest

from qgait_ptq.evaluation.benchmark import Timing, benchmark_calls


def test_calls_are_timed_in_turn_and_compared_with_the_first():
    order, rounds = [], []
    calls = [lambda: order.append("first"), lambda: order.append("second")]
    first, second = benchmark_calls(calls, rounds=3, seconds=0, advance=lambda: rounds.append(len(order)))
    assert order == ["first", "second"] * 4  # once before the rounds
    assert rounds == [4, 6, 8]
    assert first.faster == (1, 1, 1)
    assert len(second.faster) == 3


@pytest.mark.parametrize(("share", "noisy"), [(0.5, False), (0.6, True)])
def test_a_timing_is_noisy_if_others_used_the_machine_in_most_rounds(share, noisy):
    assert Timing((1, 1, 1), (1, 1, 1), (1, 1, 1), share).noisy is noisy
