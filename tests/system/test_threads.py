"""Work that several threads share."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.system import threads as shared
from qgait_ptq.system.threads import Budget, map_in_threads, share_cores


@given(st.lists(st.integers(), max_size=20), st.integers(1, 4))
def test_results_come_in_the_order_of_the_items(items, threads):
    assert list(map_in_threads(lambda item: 2 * item, items, threads)) == [2 * item for item in items]


def test_so_many_calls_run_at_once():
    meeting = threading.Barrier(3, timeout=20)  # breaks with fewer threads
    assert len(list(map_in_threads(lambda _: meeting.wait(), range(6), 3))) == 6


@pytest.mark.parametrize("amount", [3, 5, 100])  # a share too many, all, and more than there is
def test_a_thread_waits_until_its_share_is_free(amount):
    budget, entered = Budget(5), threading.Event()

    def work():
        with budget.taken(amount):
            entered.set()

    with budget.taken(2), budget.taken(1):
        other = threading.Thread(target=work)
        other.start()
        assert not entered.wait(0.05)
    assert entered.wait(20)
    other.join()


def test_threads_work_at_once_while_there_is_enough():
    with (budget := Budget(5)).taken(2), budget.taken(3), budget.taken(0):
        pass


def test_a_share_is_free_again_after_an_error():
    budget = Budget(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="work"), budget.taken(1):
            raise ValueError("work")


@pytest.mark.parametrize("threads", [1, 3])
def test_items_are_taken_as_they_are_needed(threads):
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = map_in_threads(str, items(), threads)
    assert next(results) == "0"
    assert len(taken) <= threads + 1
    results.close()
    assert len(taken) <= threads + 1


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_error_is_raised_and_ends_the_work(threads):
    called = []

    def fail_at_three(item):
        called.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(map_in_threads(fail_at_three, range(100), threads))
    assert len(called) < 10


@pytest.mark.parametrize(
    ("cores", "processes", "expected"),
    [(1, 1, (1, 1)), (2, 1, (2, 1)), (4, 1, (4, 1)), (16, 1, (4, 13)), (16, 4, (4, 1)), (4, 8, (1, 1))],
)
def test_callers_and_workers_of_the_session_are_as_many_as_the_cores(monkeypatch, cores, processes, expected):
    """The calls share the workers of one session, one less than its threads."""
    monkeypatch.setattr(shared, "usable_cores", lambda: cores)
    at_once, of_session = share_cores(processes)
    assert (at_once, of_session) == expected
    assert at_once + of_session - 1 == max(1, cores // processes)
