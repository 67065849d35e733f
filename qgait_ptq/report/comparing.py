"""Several results beside each other: as rows, as a table, and as a page with the fronts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgait_ptq.errors import ConfigError
from qgait_ptq.report.drawing import FLOAT, INK, WORST, Figure, draw
from qgait_ptq.report.page import render_template
from qgait_ptq.report.plain import plain
from qgait_ptq.report.widths import widths_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEGABYTE = 1e6
NEEDED = ("data", "accuracy", "agreement", "size_bytes", "target", "config", "layers")  # of a report
SAME_TEST = ("test_sequences", "protocol", "metric", "test_names")  # what makes accuracies comparable


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        name: of its folder.
        widths: such as ``W4A4``.
        target: runtime profile.
        megabytes: of the file.
        rank1: mean rank-1 of the file in percent; None where the data have no gallery.
        change: points from float, with the ends of the 95 % interval; None where not known.
        mean_average_precision: of the file in percent; None like rank-1.
        cosine: mean, with float embeddings.
        sqnr_db: of the embeddings.
        milliseconds: of a sequence, one thread; None where it was not measured.
        faster: than float in the same runtime; None like that.
        runtime: where that was measured.
    """

    name: str
    widths: str
    target: str
    megabytes: float
    rank1: float | None
    change: tuple[float, float, float] | None
    mean_average_precision: float | None
    cosine: float
    sqnr_db: float
    milliseconds: float | None
    faster: float | None
    runtime: str | None


def compare_reports(reports: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows of results that were tested on the same sequences.

    Args:
        reports: name → what its ``report.json`` holds.

    Raises:
        ConfigError: tested on different data, so that their figures say nothing about each other, or written
            by another version.
    """
    for name, report in reports.items():
        missing = [key for key in NEEDED if report.get(key) is None]
        if missing:
            raise ConfigError(
                f"{name}: its report was written by another version and lacks {', '.join(missing)}; "
                "quantize again from its recipe.yaml"
            )
    first_name, first = next(iter(reports.items()))
    for name, report in reports.items():
        for key in SAME_TEST:
            if report["data"].get(key) != first["data"].get(key):
                raise ConfigError(
                    f"{first_name} and {name} were tested on different data ({_tested(first)}; "
                    f"{_tested(report)}); their accuracies cannot be compared"
                )
    return [_row(name, report) for name, report in reports.items()]


def _tested(report: Mapping[str, Any]) -> str:
    data = report["data"]
    return f"{data['description']}, {data['test_sequences']} sequences, {data['metric']}"


def short_names(folders: Sequence[Path]) -> list[str]:
    """Plain names of folders: their own, or their whole paths where others have the same."""
    names = [folder.resolve().name for folder in folders]
    return [
        plain(folder if names.count(name) > 1 else name) for folder, name in zip(folders, names, strict=True)
    ]


def render_comparison(rows: Sequence[Row], description: str, float_rank1: float | None) -> str:
    """A page of the rows.

    Args:
        rows: of `compare_reports`.
        description: of the data.
        float_rank1: mean rank-1 of the float network in percent.
    """
    return render_template(
        "comparison.html.j2",
        description=description,
        float_rank1=float_rank1,
        rows=rows,
        figures=comparison_figures(rows),
    )


def comparison_figures(rows: Sequence[Row]) -> list[Figure]:
    """Accuracy over size, and over time where that was measured in one runtime."""
    ranked = all(row.rank1 is not None for row in rows)
    heights = [float(row.rank1 if row.rank1 is not None else row.cosine) for row in rows]
    label = "mean rank-1 of the file, %" if ranked else "cosine with float embeddings"
    figures = [
        _front("size", "Accuracy and size", [row.megabytes for row in rows], "size, MB", rows, heights, label)
    ]
    times = [row.milliseconds for row in rows if row.milliseconds is not None]
    if len(times) == len(rows) and len({row.runtime for row in rows}) == 1:
        unit = f"CPU time of a sequence in {rows[0].runtime}, one thread, ms"
        figures.append(_front("speed", "Accuracy and speed", times, unit, rows, heights, label))
    return figures


def pareto_positions(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Positions of points that no other beats in both, from cheap to costly."""
    order = sorted(range(len(costs)), key=lambda index: (costs[index], -qualities[index]))
    found: list[int] = []
    for index in order:
        if not found or qualities[index] > qualities[found[-1]]:
            found.append(index)
    return found


def _front(
    name: str,
    title: str,
    costs: Sequence[float],
    unit: str,
    rows: Sequence[Row],
    heights: Sequence[float],
    label: str,
) -> Figure:
    front = pareto_positions(costs, heights)

    def paint(axes: Axes) -> None:
        axes.plot([costs[i] for i in front], [heights[i] for i in front], "-", color=WORST, linewidth=1)
        for index, row in enumerate(rows):
            on_front = index in front
            axes.plot(
                costs[index], heights[index], "o" if on_front else "x", color=WORST if on_front else FLOAT
            )
            axes.annotate(
                plain(row.name),
                (costs[index], heights[index]),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
                color=INK,
                parse_math=False,  # a name may hold dollar signs
            )
        axes.margins(0.15)
        axes.set_xlabel(plain(unit), parse_math=False)
        axes.set_ylabel(label)

    return draw(
        name, title, "Higher and further left is better; the line joins what nothing else beats.", paint
    )


def _row(name: str, report: Mapping[str, Any]) -> Row:
    accuracy = report["accuracy"].get("onnx")
    changes = (report.get("comparison") or {}).get("onnx") or {}
    change = changes.get("rank1")
    speed = report.get("speed") or {}
    faster = speed.get("faster")
    return Row(
        name=name,
        widths=widths_label(report),
        target=report["target"]["name"],
        megabytes=report["size_bytes"]["onnx"] / MEGABYTE,
        rank1=accuracy["rank1"]["mean"] if accuracy else None,
        change=(change["mean"], change["low"], change["high"]) if change else None,
        mean_average_precision=accuracy["mAP"] if accuracy else None,
        cosine=report["agreement"]["cosine_mean"],
        sqnr_db=report["agreement"]["sqnr_db"],
        milliseconds=speed.get("onnx_ms"),
        faster=faster[0] if faster else None,
        runtime=speed.get("runtime"),
    )
