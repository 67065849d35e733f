"""Commands in processes of their own, to be stopped or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.cli.forks import COMMAND, run_forked

ENDED = 30  # seconds that a run's processes may live after it, on a busy machine


class Run:
    """A command that runs, and all processes that it starts."""

    def __init__(self, *words: object, folder: Path) -> None:
        self.mark = f"QGAIT_TEST_RUN={uuid.uuid4()}"
        name, value = self.mark.split("=")
        (folder / "tmp").mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [COMMAND, *map(str, words)],
            cwd=folder,
            env={**os.environ, name: value, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Shells let their background jobs ignore it, and a test run may be one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, f"it ended early: {self.process.communicate()}"
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def end(self, number: int | None = None, group: bool = False) -> subprocess.CompletedProcess[str]:
        """Send a signal; wait for the run, then for its processes."""
        if number is not None and group:
            os.killpg(self.process.pid, number)
        elif number is not None:
            self.process.send_signal(number)
        self.process.wait(timeout=300)
        deadline = time.monotonic() + ENDED
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self.processes(), "processes live on"
        out, err = self.process.communicate()  # their ends of the pipes are closed by now
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def processes(self) -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text())
            except OSError:
                continue
        return found


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that nothing stops, without importing torch anew."""
    (folder / "tmp").mkdir(exist_ok=True)
    return run_forked(list(map(str, words)), folder, {**os.environ, "TMPDIR": str(folder / "tmp")})
