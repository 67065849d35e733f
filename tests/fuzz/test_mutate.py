"""The fuzzer itself: it finds crashes, hangs, large requests for memory, errors, and code that runs."""

import gc
import itertools
import os
import pickle
import signal
import tempfile
import time

import pytest

from qgait_ptq.errors import DataError
from qgait_ptq.runtime.without_telemetry import import_openvino
from tests.fuzz import mutate
from tests.fuzz.mutate import CANARY, read_contents, read_in_child, run_fuzz
from tests.runtime.small_model import small_model


class Bomb:
    def __reduce__(self):
        return (open, (CANARY, "w"))


def hide_memory(_):
    try:
        bytearray(2**40)
    except MemoryError:
        raise DataError("no") from None


READERS = {
    "crash": (lambda _: os.kill(os.getpid(), signal.SIGSEGV), "crash by SIGSEGV"),
    "hang": (lambda _: time.sleep(60), "reached the limit of wall time"),
    "loop": (lambda _: all(itertools.repeat(1)), "reached the limit of CPU time"),
    "memory": (lambda _: bytearray(b"1") * (mutate.MEMORY + 2**20), "used 10"),
    "hidden memory": (hide_memory, "too much memory: no"),
    "error": (lambda path: path.read_bytes()[10**6], "IndexError"),
    "exit": (lambda _: os._exit(3), "the process ended with code 3"),
    "code": (lambda path: pickle.loads(path.read_bytes()), f"created ['{CANARY}']"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "memory" else ()) for name in READERS]
)
def test_the_fuzzer_finds_what_a_reader_may_not_do(name, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(mutate, "SECONDS", 0.1 if name == "loop" else 30)
    monkeypatch.setattr(mutate, "WAITING", 0.5 if name == "hang" else 60)
    read, message = READERS[name]
    outcome = read_contents([pickle.dumps(Bomb())] * 2, "pkl", read)
    assert len(outcome.failures) == 2
    assert all(message in failure for failure in outcome.failures.values())
    with pytest.raises(AssertionError, match=r"2 of 2 tries:\ntry 0, saved as .*\.pkl: "):
        run_fuzz("pkl", [pickle.dumps(Bomb())] * 2, read, tries=0, seed=0)


def test_the_same_seed_gives_the_same_files():
    seen = []
    for seed in (0, 0, 1):
        outcome = run_fuzz("txt", [b"12345678", b"abc"], refuse_with, tries=20, seed=seed)
        assert outcome.read == 0
        seen.append(outcome.refused)
    assert seen[0] == seen[1] != seen[2]
    assert len(set(seen[0])) > 15


def refuse_with(path):
    raise DataError(path.read_bytes().hex())


def test_what_the_parent_left_behind_is_not_collected_in_a_child():
    """A compiled model of OpenVINO waits in its destructor for threads that a child does not have."""
    core = import_openvino().Core()
    cycle = [core, core.compile_model(core.read_model(small_model().SerializeToString()), "CPU")]
    cycle.append(cycle)
    del core, cycle
    outcome = read_in_child(gc.collect)
    assert (outcome.read, outcome.failures) == (1, {})
