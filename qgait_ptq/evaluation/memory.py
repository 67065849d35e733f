"""Peak memory of a file, measured in a separate process (``python -m qgait_ptq.evaluation.memory``)."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from qgait_ptq.errors import ModelError
from qgait_ptq.evaluation.workload import USUAL_BATCH, USUAL_FRAMES, BenchmarkSetting, example_inputs
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.system.invariants import present
from qgait_ptq.system.workers import end_with_parent, run_child


def measure_memory(path: Path, setting: BenchmarkSetting) -> float | None:
    """Measure the peak memory in MB of a process that loads and runs a file, without the runtime itself.

    The runtime's share is the peak of the same process after a network with one operator.

    Returns:
        The peak memory; None where the system does not tell a process its peak, such as on Windows.

    Raises:
        ModelError: the process fails.
    """
    if _peak_memory() is None:
        return None
    numbers = map(str, (setting.threads, setting.frames or USUAL_FRAMES, setting.batch or USUAL_BATCH))
    with tempfile.TemporaryDirectory() as folder:
        smallest = Path(folder) / "smallest.onnx"
        onnx.save(_smallest_model(), smallest)
        done = run_child(
            [
                sys.executable,
                "-m",
                "qgait_ptq.evaluation.memory",
                *map(str, (smallest, path)),
                setting.runtime,
                *numbers,
            ],
            capture_output=True,
            check=False,
        )
    if done.returncode:
        raise ModelError(f"{path}: measuring its memory failed ({done.stderr.strip()[-200:]})")
    return float(json.loads(done.stdout))


def _smallest_model() -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "frames", 1, 1]) for name in "xy"
    ]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "smallest", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


def _peak_memory() -> float | None:
    """Return the peak memory of this process so far, in MB; None if the system does not tell it.

    On Linux, a process inherits ``ru_maxrss`` from its parent; VmHWM is its own.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _print_memory(smallest: str, path: str, runtime: str, threads: str, frames: str, batch: str) -> None:
    setting = BenchmarkSetting(runtime, int(threads), int(frames), int(batch))
    peaks = []
    for file in (smallest, path):
        session = open_session(Path(file), runtime, setting.threads)
        session.infer(*example_inputs(session, setting))
        peaks.append(present(_peak_memory()))
    sys.stdout.write(json.dumps(peaks[1] - peaks[0]))


if __name__ == "__main__":
    end_with_parent()
    _print_memory(*sys.argv[1:])
