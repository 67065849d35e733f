"""Commands in processes of their own that need not import torch: a server has imported it and forks.

A fork differs from a command that a user types in its start and its last moment; it measures speed for a
shorter time, and has captured the small network of the tests. Arguments, environment, current folder, output
and exit code are its own. Tests of signals and of installed commands start real ones.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("qgait-ptq"))


def run_forked(
    arguments: Sequence[str], cwd: Path | None, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fork of this session's server."""
    if sys.platform != "linux":  # elsewhere, libraries may not survive a fork
        return subprocess.run(
            [COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=environment
        )
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = {
            "arguments": [COMMAND, *arguments],
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(environment),
            "streams": [os.devnull, str(out), str(err)],
        }
        status = _server().answer(request)
        return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())


class Server:
    """A process that imports what commands need, and forks for each command."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            text=True,
        )
        atexit.register(self.end)

    def answer(self, request: dict[str, Any]) -> int:
        """Run a command and return its exit code."""
        given, taken = self._process.stdin, self._process.stdout
        assert given is not None
        assert taken is not None
        try:
            given.write(json.dumps(request) + "\n")
            given.flush()
            line = taken.readline()
            assert line, "the server has ended; standard error says why"
            return int(line)
        except BaseException:
            self.end()
            _server.cache_clear()
            raise

    def end(self) -> None:
        """End the server, and a command that still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@cache
def _server() -> Server:
    return Server()


def _serve() -> None:
    answers = os.dup(1)
    sys.path.pop(0)  # the folder of this file, which is not on the path of a command
    _import_libraries()
    gc.freeze()  # forks share what it does not touch
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run_command(json.loads(line))
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _import_libraries() -> None:
    """Import the commands, and export a small network: torch imports much of itself only then."""
    import torch

    from qgait_ptq.cli.main import COMMANDS, cli
    from qgait_ptq.config import QuantConfig
    from qgait_ptq.placement.planning import plan

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.conftest import make_gaitbase
    from tests.remembered import remember_captures, remember_operators, shorten_speed

    sys.path.pop(0)  # commands do not find the tests
    remember_operators()
    remember_captures()
    shorten_speed()
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401

    for name in COMMANDS:
        cli.get_command(None, name)  # type: ignore[arg-type]
    logging.disable()
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), dynamo=True, verbose=False)
        plan(make_gaitbase(), (64, 44), QuantConfig())
    logging.disable(logging.NOTSET)


def _run_command(request: dict[str, Any]) -> None:
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # TMPDIR may be another
    for number, path in enumerate(request["streams"]):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv[:] = request["arguments"]
    from qgait_ptq.cli.main import run

    try:
        run()
    except SystemExit as stop:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(int(stop.code or 0))  # without taking all of torch apart


if __name__ == "__main__":
    _serve()
