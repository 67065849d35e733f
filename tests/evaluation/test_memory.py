"""Peak memory: measured where the system tells it, and otherwise said to be unknown."""

import io
import sys
from pathlib import Path

from rich.console import Console

from qgait_ptq.evaluation.benchmark import FileBenchmark, Timing
from qgait_ptq.evaluation.memory import _peak_memory, measure_memory
from qgait_ptq.evaluation.workload import BenchmarkSetting
from qgait_ptq.report.runtime_tables import bench_table

TIMING = Timing((1, 1, 1), (1, 1, 1), (1, 1, 1), 0)


def shown(memory):
    console = Console(file=io.StringIO(), width=200)
    console.print(bench_table([FileBenchmark(Path("a.onnx"), TIMING, None, None, memory, 1.0)], "title"))
    return " ".join(console.file.getvalue().split())  # the table breaks its lines


def test_the_peak_of_a_process_is_known_here():
    peak = _peak_memory()
    assert peak is not None
    assert 1 < peak < 1e5


def test_where_the_system_has_no_peak_memory_the_table_says_so(monkeypatch):
    """As on Windows, which has neither the file nor the module."""
    exists = Path.is_file
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(Path, "is_file", lambda path: path != Path("/proc/self/status") and exists(path))
    memory = measure_memory(Path("a.onnx"), BenchmarkSetting())
    assert memory is None
    assert "RAM: not measured on this system" in shown(memory)
    assert "RAM: without the runtime itself" in shown(12.0)
