"""Peak memory of a file, in a process of its own: ``python -m qgait_ptq.runtime.memory`` is that process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from qgait_ptq.errors import ModelError
from qgait_ptq.runtime.sessions import OPENVINO, open_session
from qgait_ptq.runtime.workload import Setting, example_inputs


def measure_memory(path: Path, setting: Setting) -> float:
    """Peak memory in MB of a process that loads and runs a file, less what it needs before.

    Raises:
        ModelError: that process fails.
    """
    arguments = [str(path), setting.runtime, *map(str, (setting.threads, setting.frames, setting.batch))]
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "qgait_ptq.runtime.memory", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ModelError(f"{path}: its memory cannot be measured ({done.stderr.strip()[-200:]})")
    return float(json.loads(done.stdout))


def _peak_memory() -> float:
    """Of this process so far, in MB.

    Linux hands ``ru_maxrss`` on from the process that started this one; VmHWM is this one's own.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _print_memory(path: str, runtime: str, threads: str, frames: str, batch: str) -> None:
    setting = Setting(runtime, int(threads), int(frames), int(batch))
    if runtime == OPENVINO:
        import openvino  # noqa: F401 - what importing needs is not the file's
    before = _peak_memory()
    session = open_session(Path(path), runtime, setting.threads)
    session.infer(*example_inputs(session, setting))
    sys.stdout.write(json.dumps(_peak_memory() - before))


if __name__ == "__main__":
    _print_memory(*sys.argv[1:])
