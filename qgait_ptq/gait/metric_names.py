"""The names of the metrics: distances between embeddings."""

from __future__ import annotations

from typing import Any, Literal

from qgait_ptq.errors import ConfigError

Metric = Literal["euclidean", "cosine"]
METRICS = ("euclidean", "cosine")


def check_metric(metric: Any) -> None:
    """Check the name of a metric.

    Raises:
        ConfigError: the metric is unknown.
    """
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}; choose {' or '.join(METRICS)}")
