"""A deterministic fuzzer of readers of files.

`run_fuzz` writes mutated copies of seeds and reads each of them in a child process. A reader may succeed or
raise a `QgaitError`. Anything else is a failure: another exception, a crash, a hang, a request for too much
memory, or a file that the reader created. `read_in_child` reads one crafted file under the same limits.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qgait_ptq.errors import QgaitError

CANARY = "canary"  # a crafted seed creates this file in the working folder if a reader runs it
SECONDS = 5  # of one try, in CPU time: other programs take their share of a machine
WAITING = 60  # seconds of one try, also if it only waits
LIMITS = {signal.SIGPROF: "CPU time", signal.SIGALRM: "wall time"}  # what each signal limits
MEMORY = 2**30  # bytes by which one child may grow
ADDRESS_SPACE = 2 * MEMORY  # hard limit; reaching it is a failure, too
BATCH = 250  # tries of one child
SHOWN = 5  # failures in the message
INTEGERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1)


@dataclass(frozen=True)
class Outcome:
    """How the tries of one child ended.

    Attributes:
        read: tries that succeeded.
        refused: the errors of tries that were refused with a `QgaitError`.
        failures: what went wrong, by the index of the try.
    """

    read: int
    refused: tuple[str, ...]
    failures: dict[int, str]


def run_fuzz(
    kind: str,
    seeds: Sequence[bytes],
    read: Callable[[Path], object],
    tries: int,
    seed: int,
    repair: Callable[[bytes], bytes] | None = None,
) -> Outcome:
    """Read mutated files in child processes, and fail the test if a try neither succeeds nor is refused.

    Args:
        kind: suffix of the files without a dot, such as ``npy``.
        seeds: contents of valid or crafted files.
        read: gets the path of a file that stands alone in its folder.
        tries: number of mutated files. The seeds themselves are read first.
        seed: random seed for the mutations.
        repair: applied to every other mutated content, such as to correct checksums.
    """
    contents = [*seeds, *(_mutated(seeds, kind, seed, index, repair) for index in range(tries))]
    read_count, refused, failures = 0, [], {}
    for start in range(0, len(contents), BATCH):
        outcome = read_contents(contents[start : start + BATCH], kind, read)
        read_count += outcome.read
        refused += outcome.refused
        failures.update({start + index: text for index, text in outcome.failures.items()})
    shown = [
        f"try {index}, saved as {_save(contents[index], kind)}: {text}"
        for index, text in list(failures.items())[:SHOWN]
    ]
    assert not failures, f"{len(failures)} of {len(contents)} tries:\n" + "\n".join(shown)
    return Outcome(read_count, tuple(refused), failures)


def read_in_child(read: Callable[[], object]) -> Outcome:
    """Call a reader once in a child process under the limits of a try, in an empty folder."""
    return _run_child([lambda _: read()])


def read_contents(contents: Sequence[bytes], kind: str, read: Callable[[Path], object]) -> Outcome:
    """Read files of given contents in child processes; a new child follows one that ended early."""

    def step(content: bytes) -> Callable[[Path], object]:
        def write_and_read(folder: Path) -> object:
            path = folder / f"try.{kind}"
            path.write_bytes(content)
            return read(path)

        return write_and_read

    return _run_child([step(content) for content in contents])


def mutate(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Change a content in one to six places."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        near = at if rng.random() < 0.5 else min(at, rng.randrange(min(len(data), 200) + 1))  # headers
        rng.choice(MUTATIONS)(data, near, rng, others)
    return bytes(data)


def _mutated(
    seeds: Sequence[bytes], kind: str, seed: int, index: int, repair: Callable[[bytes], bytes] | None
) -> bytes:
    rng = random.Random(f"{kind} {seed} {index}")
    content = mutate(rng.choice(seeds), seeds, rng)
    return repair(content) if repair is not None and index % 2 else content


def _flip_bit(data: bytearray, at: int, rng: random.Random, _: Sequence[bytes]) -> None:
    if at < len(data):
        data[at] ^= 1 << rng.randrange(8)


def _set_byte(data: bytearray, at: int, rng: random.Random, _: Sequence[bytes]) -> None:
    data[at : at + 1] = bytes([rng.randrange(256)])


def _truncate(data: bytearray, at: int, _: random.Random, __: Sequence[bytes]) -> None:
    del data[at:]


def _delete(data: bytearray, at: int, rng: random.Random, _: Sequence[bytes]) -> None:
    del data[at : at + rng.choice((1, 2, 4, 16, 100))]


def _insert(data: bytearray, at: int, rng: random.Random, _: Sequence[bytes]) -> None:
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))


def _repeat(data: bytearray, at: int, rng: random.Random, _: Sequence[bytes]) -> None:
    chunk = bytes(data[at : at + rng.choice((1, 4, 16, 64))])
    data[at:at] = chunk * rng.choice((1, 2, 30, 1000))


def _set_integer(data: bytearray, at: int, rng: random.Random, _: Sequence[bytes]) -> None:
    form = rng.choice(("B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    data[at : at + size] = struct.pack(form, rng.choice(INTEGERS) % 256**size)


def _set_number(data: bytearray, at: int, rng: random.Random, _: Sequence[bytes]) -> None:
    """Replace decimal digits that follow, such as those of a shape in a header."""
    start = next((i for i in range(at, len(data)) if chr(data[i]).isdigit()), len(data))
    end = next((i for i in range(start, len(data)) if not chr(data[i]).isdigit()), len(data))
    number = rng.choice((str(rng.choice(INTEGERS)), "-1", "1e999", "9" * 400, "True", "()", "NaN"))
    data[start:end] = number.encode()


def _splice(data: bytearray, at: int, rng: random.Random, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    begin = rng.randrange(len(other) + 1)
    data[at:] = other[begin:] if rng.random() < 0.5 else other[begin : begin + 50] + data[at:]


MUTATIONS = (_flip_bit, _set_byte, _truncate, _delete, _insert, _repeat, _set_integer, _set_number, _splice)


def _run_child(steps: Sequence[Callable[[Path], object]]) -> Outcome:
    """Run steps in child processes; if one fails, a new child goes on after it."""
    read, refused, failures = 0, [], {}
    begin = 0
    while begin < len(steps):
        home = Path(tempfile.mkdtemp(prefix="qgait-fuzz-"))
        log = home / "log"
        log.touch()
        (home / "work").mkdir()
        child = os.fork()
        if child == 0:
            _be_child(steps[begin:], home / "work", log)
        _, status = os.waitpid(child, 0)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        shutil.rmtree(home, ignore_errors=True)
        read += sum(how == "read" for how, _ in lines)
        refused += [text for how, text in lines if how == "refused"]
        failures.update({begin + i: text for i, (how, text) in enumerate(lines) if how == "failed"})
        begin += len(lines)
        if begin < len(steps) and not (lines and lines[-1][0] == "failed"):
            failures[begin] = _ending(status)
            begin += 1
    return Outcome(read, tuple(refused), failures)


def _be_child(steps: Sequence[Callable[[Path], object]], work: Path, log: Path) -> None:
    """Run steps up to the first failure, write a line about each, and leave without the parent's handlers."""
    code = 1
    try:
        os.chdir(work)
        faulthandler.disable()
        gc.freeze()  # do not destroy what the parent left behind: OpenVINO's models wait for its threads
        # The default action ends the process even where native code does not return to Python.
        for limit in LIMITS:
            signal.signal(limit, signal.SIG_DFL)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, used + ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with log.open("a", buffering=1) as file:
            for step in steps:
                how, text = _attempt(step, work)
                file.write(json.dumps((how, text)) + "\n")
                if how == "failed":  # what it left behind, such as a peak of memory, hides later failures
                    break
        code = 0
    finally:
        os._exit(code)


def _attempt(step: Callable[[Path], object], work: Path) -> tuple[str, str]:
    """Run one step with limits of time, and say how it ended."""
    folder = Path(tempfile.mkdtemp(dir=work))
    grown = _peak()
    how, text = "read", ""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        step(folder)
    except QgaitError as error:
        how, text = ("failed", f"too much memory: {error}") if _is_memory(error) else ("refused", str(error))
    except BaseException:
        how, text = "failed", traceback.format_exc(limit=-3)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if _peak() - grown > MEMORY:
        how, text = "failed", f"used {(_peak() - grown) / 2**20:.0f} MiB ({text or how})"
    shutil.rmtree(folder)
    left = sorted(path.name for path in work.iterdir())
    if left:
        how, text = "failed", f"code of the file ran and created {left} ({text or how})"
    return how, text


def _save(content: bytes, kind: str) -> str:
    with tempfile.NamedTemporaryFile(prefix="qgait-fuzz-", suffix=f".{kind}", delete=False) as file:
        file.write(content)
    return file.name


def _is_memory(error: BaseException | None) -> bool:
    """Whether an error follows from a failed allocation."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__context__
    return error is not None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _ending(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"the process ended with code {os.WEXITSTATUS(status)}"
    ended_by = signal.Signals(os.WTERMSIG(status))
    if ended_by in LIMITS:
        return f"reached the limit of {LIMITS[ended_by]}"
    return f"crash by {ended_by.name}"
