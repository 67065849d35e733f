"""Evaluation of a result: accuracy, agreement, layers, speed and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgait_ptq.system.lazy import lazy_names

if TYPE_CHECKING:
    from qgait_ptq.evaluation.benchmark import FileBenchmark, Timing, benchmark_calls, benchmark_files
    from qgait_ptq.evaluation.workload import BenchmarkSetting, example_inputs
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "benchmark": ("FileBenchmark", "Timing", "benchmark_calls", "benchmark_files"),
            "workload": ("BenchmarkSetting", "example_inputs"),
        },
    )

__all__ = [
    "BenchmarkSetting",
    "FileBenchmark",
    "Timing",
    "benchmark_calls",
    "benchmark_files",
    "example_inputs",
]
