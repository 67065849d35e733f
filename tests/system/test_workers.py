"""Processes that end with the process that started them."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time

import pytest

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.workers import map_in_processes

PROGRAM = """
import os, sys, time
from qgait_ptq.system.workers import end_with_parent, map_in_processes, run_child

CHILD = "import os, time; from qgait_ptq.system.workers import end_with_parent; end_with_parent(); " \\
    "print(os.getpid(), file=open('pid', 'w'), flush=True); os.rename('pid', 'ready'); time.sleep(100)"

def sleep(seconds):
    open('ready', 'w').write(str(os.getpid()))
    time.sleep(seconds)

if __name__ == "__main__":
    if sys.argv[1] == "child":
        run_child([sys.executable, "-c", CHILD])
    else:
        list(map_in_processes(sleep, [100], 1))
"""


def square(number):
    return number * number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(number):
    stack = inspect.stack()
    pipe = next(frame.frame.f_locals["connection"] for frame in stack if frame.function == "_work")
    os.write(pipe.fileno(), (10**7).to_bytes(4, "big") + b"x" * 100)  # the begin of a long message
    die(number)


def divide(number):
    return 1 / number


def lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "(zombie)" not in open(f"/proc/{process}/status").read()


@pytest.mark.parametrize("kind", ["child", "worker"])
def test_processes_end_when_their_parent_is_killed(tmp_path, kind):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, "program.py", kind], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "ready").exists() and (tmp_path / "ready").read_text()):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = int((tmp_path / "ready").read_text())
    assert lives(process)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while lives(process):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_results_come_in_order():
    assert list(map_in_processes(square, range(5), 2)) == [0, 1, 4, 9, 16]


def test_closing_stops_the_processes_at_once():
    began = time.monotonic()
    results = map_in_processes(time.sleep, [0, 100, 100, 100], 2)
    next(results)
    results.close()
    assert time.monotonic() - began < 30


def test_a_killed_worker_is_one_error():
    with pytest.raises(ConfigError, match="a worker process ended with exit code -9"):
        list(map_in_processes(die, [1], 1))


def test_a_worker_that_is_killed_while_it_writes_its_result_is_one_error():
    """The rest of the message never comes."""
    with pytest.raises(ConfigError, match="a worker process ended with exit code -9"):
        list(map_in_processes(die_while_writing, range(4), 2))


def test_an_error_in_a_worker_is_raised_with_its_traceback():
    with pytest.raises(ZeroDivisionError) as caught:
        list(map_in_processes(divide, [1, 0], 2))
    assert "in divide" in caught.value.__notes__[0]


@pytest.mark.parametrize(("guard", "ended"), [("", 1), ('if __name__ == "__main__": ', 0)])
def test_a_script_without_a_guard_is_told_what_to_do(tmp_path, guard, ended):
    script = tmp_path / "script.py"
    script.write_text(
        "from qgait_ptq.system.workers import map_in_processes\n"
        f"{guard}print(list(map_in_processes(abs, [-1, -2], 2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == ended
    if ended:
        assert "put its code below if __name__" in done.stderr
        assert "bootstrapping" not in done.stderr
    else:
        assert done.stdout.strip() == "[1, 2]"
