"""Benchmarks that hold on shared machines: files run in turn, and are compared round by round.

A sample is judged by the CPU time of this process; wall time stands beside it. Rounds in which others used
the machine are counted, and it is said when they were too many.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qgait_ptq.errors import ConfigError, ModelError
from qgait_ptq.evaluation.memory import measure_memory
from qgait_ptq.evaluation.peak import measure_peak
from qgait_ptq.evaluation.sampling import Sample, interleave
from qgait_ptq.evaluation.workload import BenchmarkSetting, example_inputs
from qgait_ptq.exporters.metadata import parse_metadata
from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.runtime.exact_sessions import open_session

NOISY = 0.1  # share of the wall time of a sample that others used
QUIET_ENOUGH = 0.5  # of the rounds


@dataclass(frozen=True)
class Timing:
    """How long a file takes, over all rounds.

    Attributes:
        cpu_ms: median CPU time of a call, and its quartiles.
        wall_ms: median wall time of a call, and its quartiles.
        faster: median over the rounds of the first file's CPU time over this one's, and its quartiles.
        noisy_rounds: share of rounds in which others used the machine.
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
    """All about one file.

    Attributes:
        path: of it.
        timing: see `Timing`.
        macs_per_second: of one call; None where the file does not say its MACs.
        peak_share: of what this machine does at best in the same number type.
        peak_memory_mb: of a process of its own that loads and runs it, less what the runtime itself needs.
        megabytes: of the file.
    """

    path: Path
    timing: Timing
    macs_per_second: float | None
    peak_share: float | None
    peak_memory_mb: float
    megabytes: float


def benchmark_files(
    paths: list[Path], setting: BenchmarkSetting, advance: Callable[[], None] = lambda: None
) -> list[FileBenchmark]:
    """Compare files, each with the first.

    Args:
        paths: ONNX files that take the same sequences.
        setting: how they are run.
        advance: called after each round.

    Raises:
        ModelError: a file cannot be loaded, or does not take such a sequence.
        ConfigError: a setting below one.
    """
    if min(setting.threads, setting.frames, setting.batch, setting.rounds) < 1:
        raise ConfigError("threads, frames, batch and rounds are at least one")
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
    calls = [_call(path, setting) for path in paths]
    timings = benchmark_calls(calls, setting.rounds, setting.seconds, advance)
    return [_describe(path, timing, setting) for path, timing in zip(paths, timings, strict=True)]


def compare_speed(models: list[bytes], setting: BenchmarkSetting) -> list[Timing]:
    """Compare models in memory, each with the first."""
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
    """Medians and quartiles; ratios are taken within rounds."""
    ratios = [first.cpu / own.cpu for first, own in zip(reference, samples, strict=True)]
    return Timing(
        _quartiles([1000 * sample.cpu for sample in samples]),
        _quartiles([1000 * sample.wall for sample in samples]),
        _quartiles(ratios),
        sum(sample.others > NOISY for sample in samples) / len(samples),
    )


def is_noisy(measured: list[FileBenchmark]) -> bool:
    """Whether others used the machine so much that the figures are not to be trusted."""
    return any(one.timing.noisy for one in measured)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _call(path: Path, setting: BenchmarkSetting) -> Callable[[], Any]:
    session = open_session(path, setting.runtime, setting.threads)
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
    if "macs" in described:
        frames = described.get("frames") or setting.frames
        macs = described["macs"] / described["macs_frames"] * frames * setting.batch
        speed = macs / (timing.cpu_ms[0] / 1000)
        is_integer = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        share = speed / measure_peak(setting, is_integer)
    return FileBenchmark(path, timing, speed, share, measure_memory(path, setting), path.stat().st_size / 1e6)
