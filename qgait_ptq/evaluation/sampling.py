"""Samples of calls, taken in turn: CPU time, wall time, and use of the machine by other programs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CPU_FIELDS, IDLE_FIELDS = slice(1, 9), (3, 4)  # positions in the first line of /proc/stat


@dataclass(frozen=True)
class Sample:
    """One round of one file: seconds for each call, and the share of time of other programs."""

    cpu: float
    wall: float
    others: float


def interleave(
    calls: Sequence[Callable[[], Any]],
    rounds: int,
    seconds: float,
    advance: Callable[[], None] = lambda: None,
) -> list[list[Sample]]:
    """Sample each call in turn. A sample lasts at least `seconds`."""
    for call in calls:
        call()
    samples: list[list[Sample]] = [[] for _ in calls]
    for _ in range(rounds):
        for kept, call in zip(samples, calls, strict=True):
            kept.append(_sample(call, seconds))
        advance()
    return samples


def _sample(call: Callable[[], Any], seconds: float) -> Sample:
    busy, cpu, wall, count = _machine_busy(), time.process_time(), time.perf_counter(), 0
    while count == 0 or time.perf_counter() - wall < seconds:
        call()
        count += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    others = max(0.0, _machine_busy() - busy - cpu)
    return Sample(cpu / count, wall / count, others / wall / (os.cpu_count() or 1))


def _machine_busy() -> float:
    """Return the CPU seconds that the machine has spent so far; 0 if the system does not report them."""
    try:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[CPU_FIELDS]]
    except OSError:
        return 0.0
    idle = sum(fields[index] for index in IDLE_FIELDS)
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")
