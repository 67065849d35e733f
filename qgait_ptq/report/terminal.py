"""Terminal output: progress of the stages, and tables of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from qgait_ptq.report.evaluated import evaluation_lines
from qgait_ptq.report.losses import kept_training, loss_change
from qgait_ptq.report.plain import add_row, cell, plain, title_text, write_line
from qgait_ptq.report.processors import processors_line
from qgait_ptq.report.result_table import result_headings, result_rows
from qgait_ptq.report.widths import allocation_lines
from qgait_ptq.system.progress import Progress, Silent

NAMED_LAYERS = 3  # in one line


class SpeedColumn(ProgressColumn):
    """Steps a second, such as ``31.4/s``; empty until the first step."""

    def render(self, task: Task) -> Text:
        """Return the text for a bar."""
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.1f}/s")


class TerminalProgress:
    """Shows stages as bars with speed and time left, and prints notes, in a terminal or a notebook.

    Bars need an interactive terminal, or a notebook with ipywidgets. A notebook without ipywidgets gets one
    line for each stage. Other output, such as a file, gets only the notes.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Show progress on a console; None for standard output."""
        self.console = console or Console()

    @contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[Callable[[], None]]:
        """Show a bar while the stage runs, with the steps a second and the time left.

        If the number of steps is unknown, it shows the elapsed time.
        """
        columns: tuple[ProgressColumn, ...] = (SpinnerColumn(), TimeElapsedColumn())
        if steps is not None:
            columns = (BarColumn(), MofNCompleteColumn(), SpeedColumn(), TimeRemainingColumn())
        shown = shows_bars(self.console)
        if self.console.is_jupyter and not shown:
            self.note(f"{name} …")
        bar = RichProgress(
            TextColumn("{task.description:<13}", markup=False),
            *columns,
            console=self.console,
            transient=not self.console.is_jupyter,  # a removed bar leaves empty space in a notebook
            disable=not shown,
        )
        with bar:
            task = bar.add_task(plain(name), total=steps)
            yield lambda: bar.advance(task)
            bar.refresh()

    def note(self, text: str) -> None:
        """Print a line."""
        write_line(self.console, text)


def shows_bars(console: Console) -> bool:
    """Return whether bars can be redrawn: in a terminal, or in a notebook with ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def default_progress() -> Progress:
    """Return the progress of a call from Python that passes none: shown in a notebook, else silent."""
    console = Console()
    return TerminalProgress(console) if console.is_jupyter else Silent()


def accuracy_table(report: Mapping[str, Any]) -> Table:
    """Return a table of accuracy and size of the float network, the file, and the simulation if evaluated.

    Args:
        report: content of ``report.json``.
    """
    table = Table()
    table.add_column("")
    for heading in result_headings(report):
        table.add_column(heading, justify="right")
    for name, values in result_rows(report):
        add_row(table, name, *values)
    return table


def evaluation_table(accuracy: Mapping[str, Any], title: str) -> Table:
    """Return a table of the accuracy of one network.

    Args:
        accuracy: accuracy in percent, as in ``report.json``.
        title: title of the table.
    """
    table = Table(title=title_text(title))
    conditions = list(accuracy["rank1"])
    for name in ("", *conditions):
        table.add_column(cell(name), justify="right" if name else "left")
    for rank in ("rank1", "rank5", "rank10"):
        values = [f"{accuracy[rank][condition]:.2f}" for condition in conditions]
        add_row(table, rank.replace("rank", "rank-") + ", %", *values)
    for metric in ("mAP", "mINP"):
        add_row(table, f"{metric}, %", *[""] * (len(conditions) - 1), f"{accuracy[metric]:.2f}")
    return table


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the lines that follow the accuracy table."""
    agreement, parity = report["agreement"], report["parity"]
    return [
        str(report["data"]["description"]),
        *_part_line(report["model"]),
        *_weight_only_line(report),
        *allocation_lines(report),
        *stage_lines(report["calibration"]),
        f"embeddings against float: cosine {agreement['cosine_mean']:.4f} mean, "
        f"{agreement['cosine_min']:.4f} worst, SQNR {agreement['sqnr_db']:.1f} dB",
        *_float_gallery_line(report["accuracy"]),
        f"file against simulation: cosine {parity['cosine_min']:.6f} on the worst of "
        f"{parity['sequences']} sequences",
        *evaluation_lines(report),
        processors_line(report["pair_sums"]),
    ]


def _part_line(model: Mapping[str, Any]) -> Iterator[str]:
    submodule = model.get("submodule")
    if submodule:
        yield (
            f"the file and its size are those of {submodule['name']} alone; accuracy is that of the whole "
            "network with the file inside"
        )


def _weight_only_line(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the operators in float whose weights are stored as integers."""
    stored = report["model"].get("weight_only_parameters", 0)
    if stored:
        layers = [layer for layer in report["layers"] if layer.get("weight_only") and layer["weight_bits"]]
        names = list(dict.fromkeys(f"{layer['name']} ({layer['weight_bits']} bits)" for layer in layers))
        shown = ", ".join(names[:NAMED_LAYERS])
        more = f" and {len(names) - NAMED_LAYERS} more" if len(names) > NAMED_LAYERS else ""
        yield (
            f"weight-only: {stored / 1e6:.2f} M weights are stored as integers and compute in float: "
            f"{shown}{more}"
        )


def _float_gallery_line(accuracy: Mapping[str, Any]) -> Iterator[str]:
    """Yield the accuracy with a gallery that the float network embedded."""
    if accuracy:
        mixed = accuracy["onnx_float_gallery"]
        yield (
            f"gallery of the float network, probes of the file: rank-1 mean {mixed['rank1']['mean']:.2f} %, "
            f"mAP {mixed['mAP']:.2f} %"
        )


def stage_lines(calibration: Mapping[str, Any]) -> Iterator[str]:
    """Yield the losses of IDC, fine-tuning and the refit on clips that they did not learn from."""
    learned = kept_training(calibration)
    idc, finetune, refit = (learned.get(stage) or {} for stage in ("idc", "finetune", "refit"))
    if idc.get("kept", "start") != "start":
        yield f"IDC: {loss_change(idc)} on held-out identities"
    for stage, name in ((finetune, "fine-tuning"), (refit, "refit")):
        if stage.get("kept", "start") != "start":
            yield f"{name} with {stage['sequences']} sequences: {loss_change(stage)} on {stage['judged_by']}"
    ranks = refit.get("ranks") or {}
    if ranks.get("kept", "start") != "start":
        yield f"keeping ranks: {loss_change(ranks)} on {ranks['judged_by']}"


def duration(seconds: float) -> str:
    """Return a duration as ``40 s``, ``7 min`` or ``1.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def layer_table(layers: list[Mapping[str, Any]], title: str) -> Table:
    """Return a table of the weighted layers: shapes, cost and widths.

    Args:
        layers: fields of `LayerPlan` as dictionaries.
        title: title of the table.
    """
    table = Table(title=title_text(title))
    table.add_column("layer", overflow="fold")
    table.add_column("operator", overflow="fold")
    table.add_column("output", overflow="fold")
    for heading in ("weights", "MMAC", "W", "A"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("kernel", no_wrap=True)
    for layer in layers:
        add_row(
            table,
            layer["name"],
            layer["operator"],
            "×".join(map(str, layer["output_shape"])),
            f"{layer['parameters']:,}",
            f"{layer['macs'] / 1e6:.1f}",
            _bits(layer["weight_bits"]),
            _bits(layer["activation_bits"]),
            "integer" if layer["integer"] else "float",
        )
    return table


def comparison_table(layers: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return a table of the errors of the file's layers against the float network.

    Args:
        layers: fields of `LayerComparison` as dictionaries, in the order of the rows.
        title: title of the table.
    """
    table = Table(title=title_text(title))
    table.add_column("layer", overflow="fold")
    for heading in ("SQNR, dB", "simulated, dB", "cosine", "distances, %"):
        table.add_column(heading, justify="right")
    for layer in layers:
        simulated = layer["simulation_sqnr_db"]
        add_row(
            table,
            layer["name"],
            f"{layer['sqnr_db']:.1f}",
            "" if simulated is None else f"{simulated:.1f}",
            f"{layer['cosine']:.5f}",
            f"{layer['distance_error']:.2f}",
        )
    return table


def _bits(bits: int | None) -> str:
    return "float" if bits is None else str(bits)


def sensitivity_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the sensitivity of each weight and input, one column for each width, worst first.

    Args:
        entries: entries from `describe_sensitivity`.
    """
    widths = sorted({int(entry["bits"]) for entry in entries})
    rows: dict[tuple[str, str], dict[int, float]] = {}
    for entry in entries:
        row = rows.setdefault((", ".join(entry["layers"]), entry["kind"]), {})
        row[int(entry["bits"])] = float(entry["distance_error"])
    table = Table(title="change of distances between people, %, when this alone is quantized")
    table.add_column("layer", overflow="fold")
    table.add_column("", no_wrap=True)
    for bits in widths:
        table.add_column(f"{bits} bits", justify="right", no_wrap=True)
    for (layers, kind), row in sorted(rows.items(), key=lambda item: -max(item[1].values())):
        name = "weights" if kind == "weights" else "input"
        add_row(table, layers, name, *(f"{row[bits]:.2f}" if bits in row else "" for bits in widths))
    return table
