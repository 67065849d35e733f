"""Comparison of several results: rows, a table, and a page with Pareto fronts."""

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
NEEDED = (
    "data",
    "accuracy",
    "agreement",
    "size_bytes",
    "target",
    "config",
    "layers",
)  # sections that a comparison needs
SAME_TEST = (
    "test_sequences",
    "protocol",
    "metric",
    "test_names",
    "cut_columns",
    "modalities",
    "longest",
    "test_content",  # the last: the others say better what differs
)  # must be equal for accuracies to be comparable

LATER = ("longest", "test_content")  # of these, which older reports and data from Python do not have

# What to say of values that tell a user nothing.
DIFFERING = {
    "test_content": "the values of the sequences, or their use in gallery and probes, differ",
    "test_names": "the names of the sequences differ",
}


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        name: name of the result folder, and the submodule if the file is that of a submodule.
        widths: label such as ``W4A4``.
        target: name of the target.
        megabytes: size of the file in MB.
        rank1: mean rank-1 of the file in percent; None if the data have no gallery.
        float_rank1: mean rank-1 of the float network in percent; None if the data have no gallery.
        change: change of rank-1 from float in points, with the ends of its 95 % interval; None if unknown.
        mean_average_precision: mAP of the file in percent; None if the data have no gallery.
        cosine: mean cosine with float embeddings.
        sqnr_db: SQNR of the embeddings in dB.
        milliseconds: CPU time of a sequence on one thread in ms; None if not measured.
        faster: ratio of the float network's time to the file's in the same runtime; None if not measured.
        runtime: runtime of this measurement; None if not measured.
        frames: number of frames of the sequence; None if not measured.
        is_whole: whether size and time are those of the whole network, as accuracy is; not of a submodule.
    """

    name: str
    widths: str
    target: str
    megabytes: float
    rank1: float | None
    float_rank1: float | None
    change: tuple[float, float, float] | None
    mean_average_precision: float | None
    cosine: float
    sqnr_db: float
    milliseconds: float | None
    faster: float | None
    runtime: str | None
    frames: int | None
    is_whole: bool = True


def compare_reports(reports: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return one row for each result. All results must have been tested on the same sequences.

    Args:
        reports: content of each ``report.json``, by the name of the result.

    Raises:
        ConfigError: results were tested on different data, or another version wrote a report.
    """
    for name, report in reports.items():
        missing = [key for key in NEEDED if report.get(key) is None]
        if missing:
            raise ConfigError(
                f"{name}: report.json was written by another version and lacks {', '.join(missing)}; "
                "quantize again with its recipe.yaml"
            )
    first_name, first = next(iter(reports.items()))
    for name, report in reports.items():
        for key in SAME_TEST:
            before, after = first["data"].get(key), report["data"].get(key)
            is_known = key not in LATER or None not in (before, after)
            if before != after and is_known:
                differing = DIFFERING.get(key, f"{key} {before} and {after}")
                raise ConfigError(
                    f"{first_name} and {name} were tested on different data ({_tested(first)}; "
                    f"{_tested(report)}; {differing}); compare results that were tested on the same data"
                )
    return [_row(name, report) for name, report in reports.items()]


def _tested(report: Mapping[str, Any]) -> str:
    data = report["data"]
    parts = (data["description"], f"{data['test_sequences']} sequences", data["metric"])
    return ", ".join(filter(None, parts))


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return printable names of folders; of equal names the paths, with numbers if these are equal, too."""
    names = [folder.resolve().name for folder in folders]
    shown = [
        plain(folder if names.count(name) > 1 else name) for folder, name in zip(folders, names, strict=True)
    ]
    return [
        f"{name} ({shown[: index + 1].count(name)})" if shown.count(name) > 1 else name
        for index, name in enumerate(shown)
    ]


def render_comparison(rows: Sequence[Row], description: str) -> str:
    """Return an HTML page that compares results.

    Args:
        rows: rows from `compare_reports`.
        description: description of the data.
    """
    return render_template(
        "comparison.html.j2",
        description=description,
        rows=rows,
        figures=comparison_figures(rows),
    )


def comparison_figures(rows: Sequence[Row]) -> list[Figure]:
    """Return figures of accuracy over size, and over time if all times are of one runtime and frame count.

    Results of submodules are left out: their accuracy is that of the whole network, size and time are not.
    """
    rows = [row for row in rows if row.is_whole]
    if not rows:
        return []
    ranked = all(row.rank1 is not None for row in rows)
    heights = [float(row.rank1 if row.rank1 is not None else row.cosine) for row in rows]
    label = "mean rank-1 of the file, %" if ranked else "cosine with float embeddings"
    figures = [
        _front("size", "Accuracy and size", [row.megabytes for row in rows], "size, MB", rows, heights, label)
    ]
    times = [row.milliseconds for row in rows if row.milliseconds is not None]
    if len(times) == len(rows) and len({(row.runtime, row.frames) for row in rows}) == 1:
        length = f"{rows[0].frames} frames" if rows[0].frames else "a sequence"
        unit = f"CPU time of {length} in {rows[0].runtime}, one thread, ms"
        figures.append(_front("speed", "Accuracy and speed", times, unit, rows, heights, label))
    return figures


def pareto_positions(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Return the indices of the Pareto-optimal points, by ascending cost."""
    order = sorted(range(len(costs)), key=lambda index: (costs[index], -qualities[index]))
    front: list[int] = []
    for index in order:
        if not front or qualities[index] > qualities[front[-1]]:
            front.append(index)
    return front


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
                parse_math=False,  # a name can contain dollar signs
            )
        axes.margins(0.15)
        axes.set_xlabel(plain(unit), parse_math=False)
        axes.set_ylabel(label)

    return draw(
        name, title, "Higher and further left is better. The line joins the Pareto-optimal results.", paint
    )


def _row(name: str, report: Mapping[str, Any]) -> Row:
    accuracy, reference = (report["accuracy"].get(name) for name in ("onnx", "float"))
    changes = (report.get("comparison") or {}).get("onnx") or {}
    change = changes.get("rank1")
    speed = report.get("speed") or {}
    faster = speed.get("faster")
    submodule = (report.get("model") or {}).get("submodule")
    return Row(
        name=f"{name} ({plain(submodule['name'])} alone)" if submodule else name,
        widths=widths_label(report),
        target=report["target"]["name"],
        megabytes=report["size_bytes"]["onnx"] / MEGABYTE,
        rank1=accuracy["rank1"]["mean"] if accuracy else None,
        float_rank1=reference["rank1"]["mean"] if reference else None,
        change=(change["mean"], change["low"], change["high"]) if change else None,
        mean_average_precision=accuracy["mAP"] if accuracy else None,
        cosine=report["agreement"]["cosine_mean"],
        sqnr_db=report["agreement"]["sqnr_db"],
        milliseconds=speed.get("onnx_ms"),
        faster=faster[0] if faster else None,
        runtime=speed.get("runtime"),
        frames=speed.get("frames"),
        is_whole=not submodule,
    )
