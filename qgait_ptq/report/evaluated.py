"""What was evaluated: the networks with figures of accuracy, and how they ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NETWORKS = ("float", "quantized", "onnx")


def evaluated_networks(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the networks that have figures: the simulation only if it was evaluated on all sequences.

    Args:
        report: content of ``report.json``.
    """
    accuracy = report["accuracy"] or ("float", "onnx")
    return tuple(name for name in NETWORKS if name in accuracy)


def evaluation_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the float network and the simulation were evaluated.

    Args:
        report: content of ``report.json``; those of earlier versions have no entry about it.
    """
    evaluation = report.get("evaluation")
    if not evaluation:
        return
    if evaluation["float_runtime"] == "torch":
        yield "the float network was evaluated in torch"
    else:
        yield "the float network was evaluated in onnxruntime: its float file computes the same"
    simulated, total = evaluation["simulated_sequences"], report["data"]["test_sequences"]
    if report["config"].get("evaluate_simulation"):
        yield f"the simulation was evaluated on all {total} test sequences"
    else:
        yield (
            f"the simulation was compared with the file on {simulated} of {total} test sequences, of at most "
            f"{report['config']['calibration_frames']} frames; --evaluate-simulation evaluates it on all"
        )
