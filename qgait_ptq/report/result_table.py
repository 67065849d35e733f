"""The table of a run, accuracy and size of each network, as plain values, as one line, and as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qgait_ptq.report.evaluated import evaluated_networks
from qgait_ptq.report.widths import widths_label

HEADINGS = {"float": "float", "quantized": "simulation", "onnx": "ONNX file"}
MEGABYTE = 1e6


def result_headings(report: Mapping[str, Any]) -> list[str]:
    """Return the headings of the columns with values.

    Args:
        report: content of ``report.json``.
    """
    return [HEADINGS[network] for network in evaluated_networks(report)]


def result_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each row and its values, one for each heading.

    Args:
        report: content of ``report.json``.
    """
    networks = evaluated_networks(report)
    yield from _accuracy_rows(report["accuracy"], networks)
    size = report["size_bytes"]
    yield "bits", ["32", *[widths_label(report)] * (len(networks) - 1)]
    simulation = [""] * (len(networks) - 2)  # it is not a file
    file = f"{size['onnx'] / MEGABYTE:.2f} ({size['float'] / size['onnx']:.1f}×)"
    yield "size, MB", [f"{size['float'] / MEGABYTE:.2f}", *simulation, file]


def result_line(report: Mapping[str, Any]) -> str:
    """Return widths, target, size and accuracy or agreement in one line.

    Args:
        report: content of ``report.json``.
    """
    size = report["size_bytes"]["onnx"] / MEGABYTE
    return f"{widths_label(report)} for {report['target']['name']}, {size:.2f} MB, {_quality(report)}"


def result_html(report: Mapping[str, Any]) -> str:
    """Return the table as HTML for a notebook, with the verdict of the page below it.

    Args:
        report: content of ``report.json``.
    """
    from qgait_ptq.report.page import render_template, verdict  # here: matplotlib takes a while to import

    return render_template(
        "result.html.j2",
        headings=result_headings(report),
        rows=list(result_rows(report)),
        verdict=verdict(report)[1],
    )


def _accuracy_rows(accuracy: Mapping[str, Any], networks: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    if not accuracy:
        return
    for condition in accuracy["float"]["rank1"]:
        yield f"rank-1 {condition}, %", [f"{accuracy[name]['rank1'][condition]:.2f}" for name in networks]
    for metric in ("mAP", "mINP"):
        yield f"{metric}, %", [f"{accuracy[name][metric]:.2f}" for name in networks]


def _quality(report: Mapping[str, Any]) -> str:
    if not report["accuracy"]:
        return f"mean cosine {report['agreement']['cosine_mean']:.4f} to float"
    before, after = (report["accuracy"][name]["rank1"]["mean"] for name in ("float", "onnx"))
    return f"mean rank-1 {after:.2f} % (float {before:.2f} %)"
