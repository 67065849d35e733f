"""Processes that end with their parent process, even if SIGKILL ends the parent.

Each process has a thread that waits at a pipe. The kernel closes the other end when the parent ends.

`concurrent.futures` is not used: its workers share one pipe for results. If a worker is killed while it
writes, the pool waits forever for the rest of the message. Here each worker has its own pipe.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any, TypeVar

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.invariants import present

Item = TypeVar("Item")
Result = TypeVar("Result")
STOPPING = (signal.SIGINT, signal.SIGTERM)


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """Yield the results of a function in the order of the items.

    The processes end when all results are taken, when the iterator is closed, or when this process ends.

    Args:
        function: function that can be pickled.
        items: arguments of the function.
        workers: number of processes. They need a main module that can be imported, such as a command or a
            script with a ``__main__`` guard.

    Raises:
        ConfigError: a process was killed, or the main module would run again in each process.
    """
    _check_main_module()
    with _started(function, min(workers, len(items))) as idle:
        busy: dict[_Worker, int] = {}
        results: dict[int, Result] = {}
        sent = 0
        for index in range(len(items)):
            while index not in results:
                while idle and sent < len(items):
                    worker = idle.pop()
                    worker.send(items[sent])
                    busy[worker] = sent
                    sent += 1
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    results[busy.pop(worker)] = worker.receive()
                    idle.append(worker)
            yield results.pop(index)


def _check_main_module() -> None:
    """Refuse a script that would run again in each process, which imports it.

    Raises:
        ConfigError: the script has no ``__main__`` guard.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or not Path(file).is_file():  # a notebook or an interactive session: nothing is imported
        return
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError):  # an archive with a main module
        return
    guarded = any(
        isinstance(node, ast.If) and "__name__" in {name.id for name in _names(node.test)}
        for node in ast.walk(tree)
    )
    if not guarded:
        raise ConfigError(
            f"{file}: worker processes import this script, which would run it again; put its code below "
            'if __name__ == "__main__":, or use workers=1'
        )


def _names(expression: ast.expr) -> Iterator[ast.Name]:
    return (node for node in ast.walk(expression) if isinstance(node, ast.Name))


def run_child(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that calls `end_with_parent`, and wait for it.

    Args:
        command: program and its arguments.
        options: options of `subprocess.run`.
    """
    reader, writer = os.pipe()
    try:
        return subprocess.run(command, stdin=reader, text=True, **options)  # noqa: S603 - ourselves
    finally:
        os.close(writer)
        os.close(reader)


def end_with_parent() -> None:
    """End this process when the parent that called `run_child` has ended."""
    # Python's buffers are bypassed, because holding their lock at exit is a fatal error.
    Thread(target=_end_after, args=(lambda: os.read(sys.stdin.fileno(), 1),), daemon=True).start()


@dataclass(frozen=True)
class _Failure:
    """An error of the function, instead of its result."""

    error: Exception


@dataclass(frozen=True)
class _Worker:
    """A process and this process's end of its pipe."""

    process: SpawnProcess
    connection: Connection

    def send(self, item: Any) -> None:
        """Send an item to an idle worker."""
        try:
            self.connection.send(item)
        except OSError:
            raise self._ended() from None

    def receive(self) -> Any:
        """Receive the result."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(answer, _Failure):
            raise answer.error
        return answer

    def _ended(self) -> ConfigError:
        self.process.join()
        return ConfigError(
            f"a worker process ended with exit code {self.process.exitcode}, possibly out of memory; "
            "use fewer workers"
        )


@contextmanager
def _started(function: Callable[[Any], Any], count: int) -> Iterator[list[_Worker]]:
    """Start workers, and kill them at the end. Workers write no files, so this is safe."""
    context = get_context("spawn")  # a fork of a process that has used OpenMP threads can hang
    workers: list[_Worker] = []
    try:
        with _without_signals():  # an interrupt during the start would print a traceback
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(function, theirs), daemon=True)
                process.start()
                theirs.close()  # otherwise the end of the process would not close the pipe
                workers.append(_Worker(process, ours))
        yield list(workers)
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def _work(function: Callable[[Any], Any], connection: Connection) -> None:
    """Answer items with results until the pipe is closed."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends Ctrl-C to all processes; the parent handles it
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    parent = parent_process()
    parent = present(parent)
    Thread(target=_end_after, args=(lambda: wait([parent.sentinel]),), daemon=True).start()
    try:
        while True:
            connection.send(_answer(function, connection.recv()))
    except (EOFError, OSError):  # the parent has closed the pipe
        return


def _answer(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return _Failure(error)


def _end_after(waiting: Callable[[], Any]) -> None:
    waiting()
    os._exit(1)  # other threads may wait forever


@contextmanager
def _without_signals() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the block ends, and in started processes until they unblock them."""
    arrived: list[int] = []
    handlers: dict[int, Any] = {}
    if current_thread() is main_thread():  # a mask alone does not block signals in other threads
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
