"""Benchmarks for shared machines: files run in turn, and are compared within each round.

The measure is the CPU time of this process; wall time is recorded too. Rounds in which other programs used
the machine are counted, and a warning says if they were too many.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from qgait_ptq.errors import ConfigError, ModelError
from qgait_ptq.evaluation.macs import macs_of_sequence
from qgait_ptq.evaluation.memory import measure_memory
from qgait_ptq.evaluation.peak import measure_peak
from qgait_ptq.evaluation.sampling import Sample, interleave
from qgait_ptq.evaluation.workload import (
    USUAL_BATCH,
    USUAL_FRAMES,
    BenchmarkSetting,
    example_inputs,
    fitting_size,
)
from qgait_ptq.exporters.metadata import parse_metadata
from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.written_file import MOST_THREADS
from qgait_ptq.system.invariants import present

NOISY = 0.1  # share of a sample's wall time that other programs used
QUIET_ENOUGH = 0.5  # largest share of noisy rounds


@dataclass(frozen=True)
class Timing:
    """Time of a file over all rounds.

    Attributes:
        cpu_ms: median CPU time of a call, and its quartiles.
        wall_ms: median wall time of a call, and its quartiles.
        faster: median over the rounds of the first file's CPU time over this one's, and its quartiles.
        noisy_rounds: share of rounds in which other programs used the machine.
    """

    cpu_ms: tuple[float, float, float]
    wall_ms: tuple[float, float, float]
    faster: tuple[float, float, float]
    noisy_rounds: float

    @property
    def noisy(self) -> bool:
        """Return whether other processes used the machine in too many rounds to trust the figures."""
        return self.noisy_rounds > QUIET_ENOUGH


@dataclass(frozen=True)
class FileBenchmark:
    """Measurements of one file.

    Attributes:
        path: path of the file.
        timing: time over all rounds.
        macs_per_second: MACs per second of CPU time in one call; None if the file does not record its MACs
            for this frame count.
        peak_share: ratio to the best MACs per second of this machine in the same number type.
        peak_memory_mb: peak memory in MB of a process that runs the file, without the runtime itself; None
            where it cannot be measured.
        megabytes: size of the file in MB.
    """

    path: Path
    timing: Timing
    macs_per_second: float | None
    peak_share: float | None
    peak_memory_mb: float | None
    megabytes: float


def benchmark_files(
    paths: list[Path], setting: BenchmarkSetting, advance: Callable[[], None] = lambda: None
) -> list[FileBenchmark]:
    """Measure files, and compare each with the first.

    Args:
        paths: ONNX files with the same inputs.
        setting: workload and runtime.
        advance: function to call after each round, then after the memory of each file is measured.

    Raises:
        ModelError: a file cannot be loaded, or does not accept the workload.
        ConfigError: a setting is out of range, or a file takes another size only.
    """
    setting = fit_setting(paths, setting)
    calls = [_call(path, setting) for path in paths]
    timings = benchmark_calls(calls, setting.rounds, setting.seconds, advance)
    measured = []
    for path, timing in zip(paths, timings, strict=True):
        measured.append(_describe(path, timing, setting))
        advance()
    return measured


def fit_setting(paths: list[Path], setting: BenchmarkSetting) -> BenchmarkSetting:
    """Return a setting with the frame count and the batch size at which files are measured.

    Args:
        paths: ONNX files.
        setting: setting; sizes that are None are those that the files fix, or the usual ones.

    Raises:
        ModelError: a file cannot be loaded.
        ConfigError: a setting is out of range, or files fix different sizes.
    """
    sizes = [size for size in (setting.frames, setting.batch) if size is not None]
    if min(setting.threads, setting.rounds, *sizes) < 1:
        raise ConfigError("threads, frames, batch and rounds must be at least one")
    if setting.threads > MOST_THREADS:
        raise ConfigError(f"threads is {setting.threads}; at most {MOST_THREADS} are started")
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
    if len(sizes) == 2:
        return setting
    sessions = {str(path): open_session(path, setting.runtime, 1) for path in paths}
    frames = fitting_size(sessions, 1, USUAL_FRAMES, setting.frames)
    return replace(setting, frames=frames, batch=fitting_size(sessions, 0, USUAL_BATCH, setting.batch))


def compare_speed(models: list[bytes], setting: BenchmarkSetting) -> list[Timing]:
    """Measure the speed of models in memory, and compare each with the first."""
    calls: list[Callable[[], Any]] = []
    for model in models:
        session = open_session(model, setting.runtime, setting.threads)
        calls.append(partial(session.infer, *example_inputs(session, setting)))
    return benchmark_calls(calls, setting.rounds, setting.seconds)


def benchmark_calls(
    calls: Sequence[Callable[[], Any]],
    rounds: int,
    seconds: float = 0.3,
    advance: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time calls in turn, and compare each with the first.

    Args:
        calls: functions to time.
        rounds: number of samples of each call.
        seconds: shortest time of a sample.
        advance: called after each round.
    """
    samples = interleave(calls, rounds, seconds, advance)
    return [summarize(own, samples[0]) for own in samples]


def summarize(samples: list[Sample], reference: list[Sample]) -> Timing:
    """Return medians and quartiles. Ratios are computed within rounds."""
    ratios = [first.cpu / own.cpu for first, own in zip(reference, samples, strict=True)]
    return Timing(
        _quartiles([1000 * sample.cpu for sample in samples]),
        _quartiles([1000 * sample.wall for sample in samples]),
        _quartiles(ratios),
        sum(sample.others > NOISY for sample in samples) / len(samples),
    )


def is_noisy(measured: list[FileBenchmark]) -> bool:
    """Return whether other programs used the machine so much that the figures are not reliable."""
    return any(one.timing.noisy for one in measured)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the median, the lower and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _call(path: Path, setting: BenchmarkSetting) -> Callable[[], Any]:
    session = open_session(path, setting.runtime, setting.threads)
    for axis, size in enumerate((setting.batch, setting.frames)):
        fitting_size({str(path): session}, axis, 1, size)
    batches = example_inputs(session, setting)
    try:
        session.infer(*batches)
    except ModelError:
        raise
    except Exception as error:  # the runtimes' exceptions have no common public base
        detail, shapes = " ".join(str(error).split())[:200], [list(batch.shape) for batch in batches]
        raise ModelError(f"{path}: does not run on {shapes} ({detail})") from None
    return lambda: session.infer(*batches)


def _describe(path: Path, timing: Timing, setting: BenchmarkSetting) -> FileBenchmark:
    model = read_model(path)
    described = (parse_metadata({p.key: p.value for p in model.metadata_props}) or {}).get("model", {})
    speed = share = None
    macs = macs_of_sequence(described, present(setting.frames))
    if macs is not None:
        speed = macs * present(setting.batch) / (timing.cpu_ms[0] / 1000)
        is_integer = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        share = speed / measure_peak(setting, is_integer)
    return FileBenchmark(path, timing, speed, share, measure_memory(path, setting), path.stat().st_size / 1e6)
