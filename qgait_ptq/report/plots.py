"""The figures of a report, drawn from the content of ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qgait_ptq.report.drawing import (
    DIFFERENT,
    FILE,
    FLOAT,
    INK,
    QUANTIZED,
    SAME,
    WORST,
    Figure,
    draw,
)
from qgait_ptq.report.plain import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]
WORST_LAYERS, SHOWN_LAYERS = 3, 40
LARGEST_SQNR = 200.0  # dB, of a layer without any error, see `gait.metrics`, which imports torch
ROW_HEIGHT = 0.2  # inches, height of a layer's bar
NETWORKS = (
    ("float", "float", FLOAT, "-"),
    ("quantized", "simulation", QUANTIZED, "--"),
    ("onnx", "file", FILE, ":"),
)
PAIRS = (("same", "same person", SAME), ("different", "different people", DIFFERENT))


def report_figures(report: Report) -> list[Figure]:
    """Return all figures for which the report has data."""
    drawn = (
        cmc_figure(report) if report["accuracy"] else None,
        histogram_figure(report),
        scatter_figure(report),
        loss_figure(report),
        layer_figure(report),
        front_figure(report) if report["allocation"].get("front") else None,
        sensitivity_figure(report["allocation"]["sensitivity"]) if report["allocation"] else None,
    )
    return [figure for figure in drawn if figure is not None]


def cmc_figure(report: Report) -> Figure:
    """Draw the cumulative match characteristic of all evaluated networks."""
    accuracy = report["accuracy"]
    networks = [network for network in NETWORKS if network[0] in accuracy]

    def paint(axes: Axes) -> None:
        for name, label, colour, style in networks:
            curve = accuracy[name]["cmc"]
            axes.plot(range(1, len(curve) + 1), curve, style, color=colour, label=label, linewidth=2)
        lowest = min(accuracy[name]["cmc"][0] for name, *_ in networks)
        room = max(0.2, 0.1 * (100 - lowest))
        axes.set_ylim(lowest - room, 100 + room / 4)
        axes.set_xticks([1, 5, 10, 15, 20])
        axes.set(xlabel="rank k", ylabel="probes found among the first k, %")
        axes.legend(loc="lower right")

    return draw(
        "cmc",
        "Cumulative match characteristic",
        "Higher is better. Where the lines coincide, quantization changed nothing.",
        paint,
    )


def histogram_figure(report: Report) -> Figure:
    """Draw the distances between sequences before and after quantization."""
    distances = report["comparison"]["distances"]
    edges = distances["edges"]

    def paint(axes: Axes) -> None:
        for name, label, colour in PAIRS:
            for network, style in (("float", "--"), ("quantized", "-")):
                shares = [100 * share for share in distances[network][name]]
                title = f"{label}, {'float' if network == 'float' else 'file'}"
                axes.stairs(shares, edges, color=colour, linestyle=style, label=title, linewidth=1.5)
        axes.set(xlabel="distance of two embeddings", ylabel="pairs, %")
        axes.set_ylim(bottom=0)
        axes.legend()

    return draw(
        "distances",
        "Distances between sequences",
        "Less overlap of the two colours is better. Dashed: float network. Solid: file.",
        paint,
    )


def scatter_figure(report: Report) -> Figure:
    """Draw the distance of each pair in the file over its distance in float."""
    pairs = report["comparison"]["distances"]["pairs"]

    def paint(axes: Axes) -> None:
        highest = max(
            (value for points in pairs.values() for point in points for value in point), default=1.0
        )
        axes.plot([0, highest], [0, highest], color=INK, linewidth=0.8)
        for (name, label, colour), marker in zip(PAIRS, ("o", "s"), strict=True):
            if pairs[name]:
                before, after = zip(*pairs[name], strict=True)
                axes.plot(before, after, marker, color=colour, label=label, markersize=2.6, alpha=0.7, mew=0)
        axes.set(xlabel="distance, float", ylabel="distance, file")
        if any(pairs.values()):
            axes.legend(loc="upper left")

    return draw(
        "distortion",
        "Change of distances by quantization",
        "On the line nothing changed. Scatter changes the ranking; a common slope does not.",
        paint,
    )


def loss_figure(report: Report) -> Figure | None:
    """Draw the training losses of IDC and fine-tuning; None if neither ran."""
    calibration = report["calibration"]
    idc = calibration.get("idc") or {}
    end_to_end = (calibration.get("finetune") or {}).get("end_to_end") or {}
    curves = [
        (label, stage["curve"], colour, style)
        for label, stage, colour, style in (
            ("IDC", idc, FLOAT, "-"),
            ("fine-tuning, end to end", end_to_end, QUANTIZED, "--"),
        )
        if stage.get("curve")
    ]
    if not curves:
        return None

    def paint(axes: Axes) -> None:
        for label, curve, colour, style in curves:
            steps, losses = zip(*curve, strict=True)
            axes.plot(steps, losses, style, color=colour, label=label, marker="o", markersize=3)
        axes.set(xlabel="step", ylabel="training loss", yscale="log")
        axes.legend()

    return draw(
        "losses",
        "IDC and fine-tuning",
        "Means over the steps since the point before. Learning rates fall to zero at the last step; held-out "
        "clips then decide whether the result is kept.",
        paint,
    )


def has_error(layer: Mapping[str, Any]) -> bool:
    """Return whether the error of a layer was measured, and is more than nothing."""
    return layer["sqnr_db"] is not None and layer["sqnr_db"] < LARGEST_SQNR


def layer_figure(report: Report) -> Figure:
    """Draw the errors of the layers' outputs, worst first."""
    layers = [layer for layer in report["layers"] if has_error(layer)]
    shown = sorted(layers, key=lambda layer: float(layer["sqnr_db"]))[:SHOWN_LAYERS]
    left = len(layers) - len(shown)

    def paint(axes: Axes) -> None:
        colours = [WORST if number < WORST_LAYERS else FLOAT for number in range(len(shown))]
        names = [plain(_with_bits(layer)) for layer in shown]
        bars = axes.barh(range(len(shown)), [layer["sqnr_db"] for layer in shown], color=colours)
        for bar in bars[:WORST_LAYERS]:
            bar.set_hatch("//")
        axes.set_yticks(range(len(shown)), names, fontsize=8, parse_math=False)
        axes.invert_yaxis()
        axes.set(xlabel="signal to quantization noise of the output, dB")
        axes.grid(axis="y", visible=False)

    more = f"; {left} better ones are not shown" if left else ""
    return draw(
        "layers",
        "Errors of layers",
        f"Longer is better; the hatched bars are worst{more}. Errors of earlier layers are included.",
        paint,
        height=1.0 + ROW_HEIGHT * len(shown),
    )


def front_figure(report: Report) -> Figure:
    """Draw the best widths for each cost, and the chosen widths."""
    allocation = report["allocation"]
    by_size = allocation["by"] == "size"
    chosen = allocation["chosen"]

    def cost(point: Mapping[str, Any]) -> float:
        return point["file_bytes"] / 1e6 if by_size else point["bops_percent"]

    def paint(axes: Axes) -> None:
        points = [*allocation["front"], chosen]
        points = sorted(points, key=cost)
        axes.plot(
            [cost(p) for p in points], [p["distortion"] for p in points], "o-", color=FLOAT, markersize=4
        )
        axes.plot([cost(chosen)], [chosen["distortion"]], "*", color=WORST, markersize=14, label="chosen")
        axes.set_yscale("log")
        axes.set(
            xlabel="size of the file, MB" if by_size else "bit operations, % of those with 8 bits everywhere",
            ylabel="predicted distortion of distances",
        )
        axes.legend()

    return draw(
        "front",
        "Widths of layers: cost and damage",
        "Each point has the least predicted damage at its cost. Lower and further left is better.",
        paint,
    )


def sensitivity_figure(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the sensitivity of each weight and input at each width as a heat map.

    Args:
        entries: entries from `describe_sensitivity`.
    """
    rows = list(dict.fromkeys((entry["kind"], tuple(entry["layers"])) for entry in entries))
    widths = sorted({int(entry["bits"]) for entry in entries})
    values = {(e["kind"], tuple(e["layers"]), e["bits"]): float(e["distance_error"]) for e in entries}

    def paint(axes: Axes) -> None:
        import numpy as np
        from matplotlib.colors import LogNorm

        table = np.array([[values.get((*row, bits), np.nan) for bits in widths] for row in rows])
        shades = np.maximum(table, 1e-3)  # a logarithmic scale has no zero
        norm = LogNorm(np.nanmin(shades), max(np.nanmax(shades), 2 * np.nanmin(shades)))
        mesh = axes.pcolormesh(shades, cmap="cividis", norm=norm, edgecolors="none")
        for y, line in enumerate(table):
            for x, value in enumerate(line):
                if np.isfinite(value):
                    ink = "#ffffff" if norm(shades[y, x]) < 0.55 else "#000000"
                    axes.text(
                        x + 0.5, y + 0.5, f"{value:.2g}", ha="center", va="center", fontsize=7, color=ink
                    )
        axes.set_xticks([x + 0.5 for x in range(len(widths))], [f"{bits}" for bits in widths])
        names = [plain(f"{'weights' if kind == 'weights' else 'input'} {layers[0]}") for kind, layers in rows]
        axes.set_yticks([y + 0.5 for y in range(len(rows))], names, fontsize=8, parse_math=False)
        axes.invert_yaxis()
        axes.set(xlabel="bits")
        axes.grid(visible=False)
        axes.figure.colorbar(mesh, ax=axes, label="change of distances between people, %")

    return draw(
        "sensitivity",
        "Sensitivity of each tensor",
        "Change of distances between people in percent when only this is quantized. Brighter is worse.",
        paint,
        height=1.2 + ROW_HEIGHT * len(rows),
    )


def _with_bits(layer: Mapping[str, Any]) -> str:
    widths = f"W{layer['weight_bits']}A{layer['activation_bits']}"
    if layer["weight_bits"] is None:
        widths = "float"
    elif layer["activation_bits"] is None:
        widths = f"W{layer['weight_bits']}, weight-only"
    return f"{layer['name']} ({widths})"
