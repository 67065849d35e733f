"""Processes that end with the process that started them, even where that is killed by SIGKILL.

Each of them has a thread that waits at a pipe. The kernel closes the other end when the starting process
ends; closing it there stops the processes at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from threading import Thread, current_thread, main_thread
from typing import Any, TypeVar

from qgait_ptq.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")
STOPPING = (signal.SIGINT, signal.SIGTERM)


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Give the results of a function, in the order of the items.

    The processes end when all results are taken, when the iterator is closed, or when this process ends.

    Args:
        function: can be pickled.
        items: its arguments.
        workers: processes. They need a main module that can be imported, as a command or a script with a
            ``__main__`` guard is.

    Raises:
        ConfigError: a process was killed.
    """
    # Spawned, not forked: a fork of a process that has used OpenMP threads can hang.
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (reader,))
    try:
        with _without_signals():  # a process that is half started would print a traceback
            results = pool.map(function, items)
        yield from results
        pool.shutdown()
    except BrokenProcessPool:
        raise ConfigError(
            "a worker process was killed, perhaps because memory ran out; use fewer workers"
        ) from None
    finally:
        writer.close()
        pool.shutdown(cancel_futures=True)
        reader.close()


def run_child(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that calls `end_with_parent`, and wait for it.

    Args:
        command: the program and its arguments.
        options: see `subprocess.run`.
    """
    reader, writer = os.pipe()
    try:
        return subprocess.run(command, stdin=reader, text=True, **options)  # noqa: S603 - ourselves
    finally:
        os.close(writer)
        os.close(reader)


def end_with_parent() -> None:
    """End this process when the one that started it by `run_child` has ended."""
    # Read below Python's buffers: their lock, held at exit, is a fatal error.
    Thread(target=_end_after, args=(lambda: os.read(sys.stdin.fileno(), 1),), daemon=True).start()


def _begin_worker(parent: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent answers it
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    Thread(target=_end_after, args=(lambda: wait([parent]),), daemon=True).start()


def _end_after(waiting: Callable[[], Any]) -> None:
    waiting()
    os._exit(1)  # other threads may wait for ever


@contextmanager
def _without_signals() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block ends; started processes hold them back until told."""
    arrived: list[int] = []
    handlers: dict[int, Any] = {}
    if current_thread() is main_thread():  # a mask alone leaves other threads that take signals for it
        handlers = {
            number: signal.signal(number, lambda number, frame: arrived.append(number)) for number in STOPPING
        }
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in arrived:
            signal.raise_signal(number)
