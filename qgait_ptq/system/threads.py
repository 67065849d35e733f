"""Work that several threads of this process share."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

MOST_AT_ONCE = 4  # calls of a network; each holds the activations of its sequences

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(processes: int) -> tuple[int, int]:
    """Return how many calls of onnxruntime run at once in this process, and the threads of the session.

    Several calls at once wait for each other less often than the threads of one call. They share the workers
    of the session, which are one less than its threads, since the caller of a call works, too.

    Args:
        processes: number of processes that share the cores.
    """
    cores = max(1, usable_cores() // processes)
    at_once = min(cores, MOST_AT_ONCE)
    return at_once, cores - at_once + 1


class Budget:
    """An amount that threads share, such as memory. A thread waits until its share is free."""

    def __init__(self, total: int) -> None:
        self._total, self._free, self._changed = total, total, Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Take an amount during the block. An amount above the total is reduced to the total."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield the results of a function in the order of the items.

    Items are taken from the iterable in this thread, as they are needed.

    Args:
        function: function that is safe to call from several threads. Its first error is raised.
        items: arguments of the function.
        threads: number of threads; with one, this thread calls the function.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:  # one more, so that no thread waits for the next item
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
