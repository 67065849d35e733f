"""Draw the figure and the table of results in README.md: accuracy against file size at each width.

    python examples/draw_results.py             # table and figure from the stored measurements
    python examples/draw_results.py --measure   # measure the file sizes first, a few minutes

Accuracy comes from docs/accuracy/runs.jsonl (`measure_accuracy.py`), file sizes from OUT/sizes.json. The
command writes OUT/results.svg, and the table into README.md and docs/results.md, between the markers
``<!-- results -->`` and ``<!-- end of results -->``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
NETWORK = ROOT / "examples" / "models" / "gaitbase-small.pt"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
ACCURACY = ROOT / "docs" / "accuracy" / "runs.jsonl"
WIDTHS = {
    "W8A8": ["--bits", "8"],
    "W4A8": ["--weight-bits", "4"],
    "W4A4": ["--bits", "4"],
    "W3A3": ["--bits", "3"],
}
FLOAT = "float"
MARKERS = ("<!-- results -->", "<!-- end of results -->")

WIDTH, HEIGHT = 760, 344
PANEL_WIDTH, PANEL_HEIGHT, TOP, LEFTS = 290, 210, 62, (64, 444)
LABEL_GAP = 16.0  # smallest distance between two labels
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f; }
  .title { font-weight: 600; font-size: 14px; }
  .tick, .note { font-size: 11.5px; fill: #57606a; }
  .page { fill: #ffffff; }
  .label { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; }
  .grid { stroke: #d8dee4; }
  .float { fill: #57606a; }
  .quantized { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .tick, .note { fill: #9aa4ae; }
    .page { fill: #0d1117; }
    .label { stroke: #0d1117; }
    .grid { stroke: #30363d; }
    .float { fill: #9aa4ae; }
    .quantized { fill: #58a6ff; }
  }
"""


@dataclass(frozen=True)
class Row:
    """The results at one width.

    Attributes:
        widths: such as ``W4A8``, or ``float``.
        megabytes: size of the file, 10^6 bytes.
        rank1: mean over conditions and seeds, percent.
        mean_average_precision: mean over seeds, percent.
        sqnr_db: of embeddings against float, mean over seeds; None for float.
    """

    widths: str
    megabytes: float
    rank1: float
    mean_average_precision: float
    sqnr_db: float | None


def read_rows(accuracy: Path, sizes: Path) -> list[Row]:
    """Combine accuracies and sizes; the float network comes first.

    Args:
        accuracy: one run a line, from `measure_accuracy.py`.
        sizes: from `measure_sizes`.
    """
    runs = [json.loads(line) for line in accuracy.read_text().splitlines()]
    size = json.loads(sizes.read_text())["bytes"]

    def mean(chosen: list[dict[str, Any]], kind: str, measure: str) -> float:
        return sum(run[kind][measure] for run in chosen) / len(chosen)

    rows = [Row(FLOAT, size[FLOAT] / 1e6, mean(runs, FLOAT, "mean_rank1"), mean(runs, FLOAT, "map"), None)]
    for widths in WIDTHS:
        chosen = [run for run in runs if run["bits"] == widths]
        sqnr = sum(run["sqnr_db"] for run in chosen) / len(chosen)
        rank1, precision = mean(chosen, "file", "mean_rank1"), mean(chosen, "file", "map")
        rows.append(Row(widths, size[widths] / 1e6, rank1, precision, sqnr))
    return rows


def measure_sizes() -> dict[str, Any]:
    """Write the shipped network at each width, with few sequences; the size does not depend on them."""
    found: dict[str, int] = {}
    toolkit: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("calibration", "test"):
            arguments = ["--identities", "2", "--views-per-trial", "1", "--format", "npz", "--split", split]
            run_command(["walkers", str(folder / "people"), *arguments])
        for widths, options in WIDTHS.items():
            out = folder / widths
            data = ["--data", str(folder / "people"), "--no-idc", "--out", str(out)]
            run_command(["quantize", str(NETWORK), *options, *data])
            report = json.loads((out / "report.json").read_text())
            found |= {FLOAT: report["size_bytes"]["float"], widths: report["size_bytes"]["onnx"]}
            toolkit = report["toolkit"]
            click.echo(f"{widths}: {found[widths]} bytes")
    return {"toolkit": toolkit, "bytes": found}


def table(rows: list[Row]) -> str:
    """Draw the rows as a table of Markdown."""
    lines = [
        "| widths | option | file, MB | smaller | rank-1, % | mAP, % | embedding SQNR, dB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        option = f"`{' '.join(WIDTHS[row.widths])}`" if row.widths in WIDTHS else "–"
        sqnr = "–" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
        smaller = f"{rows[0].megabytes / row.megabytes:.1f}×"
        figures = f"{row.rank1:.2f} | {row.mean_average_precision:.2f} | {sqnr}"
        lines.append(f"| {row.widths} | {option} | {row.megabytes:.2f} | {smaller} | {figures} |")
    return "\n".join(lines)


def with_table(page: str, rows: list[Row]) -> str:
    """Replace what a page has between the markers."""
    begin, end = MARKERS
    pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
    replaced, count = re.subn(pattern, f"{begin}\n{table(rows)}\n{end}", page, flags=re.DOTALL)
    if count != 1:
        raise click.ClickException(f"a page needs the markers {begin} and {end} once; found {count}")
    return replaced


def draw(rows: list[Row]) -> str:
    """Draw rank-1 and mAP against the file size as an SVG that follows the reader's colour scheme."""
    limit = max(row.megabytes for row in rows) * 1.15
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">Accuracy against file size of GaitBase-small: float, {", ".join(WIDTHS)}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
    ]
    for left, title, values in (
        (LEFTS[0], "rank-1, %", [row.rank1 for row in rows]),
        (LEFTS[1], "mAP, %", [row.mean_average_precision for row in rows]),
    ):
        parts += draw_panel(rows, values, title, left, limit)
    note = "GaitBase-small on synthetic walkers, mean of three seeds. The vertical axes do not begin at zero."
    parts += [f'<text class="note" x="{LEFTS[0] - 40}" y="{HEIGHT - 12}">{note}</text>', "</svg>"]
    return "\n".join(parts) + "\n"


def draw_panel(rows: list[Row], values: list[float], title: str, left: int, limit: float) -> list[str]:
    """Draw one measure against the file size.

    Args:
        rows: the widths.
        values: the measure at each width.
        title: of the panel.
        left: where the panel begins.
        limit: largest file size on the axis, MB.
    """
    bottom = TOP + PANEL_HEIGHT
    ticks = ticks_around(min(values), max(values))

    def across(megabytes: float) -> float:
        return left + PANEL_WIDTH * megabytes / limit

    def down(value: float) -> float:
        return bottom - PANEL_HEIGHT * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [f'<text class="title" x="{left - 40}" y="{TOP - 26}">{title}</text>']
    for tick in ticks:
        y = down(tick)
        parts += [
            f'<line class="grid" x1="{left}" x2="{left + PANEL_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.1f}</text>',
        ]
    for megabytes in [step / 2 for step in range(int(2 * limit) + 1)]:
        place = f'x="{across(megabytes):.1f}" y="{bottom + 18}"'
        parts.append(f'<text class="tick" {place} text-anchor="middle">{megabytes:.1f}</text>')
    place = f'x="{left + PANEL_WIDTH / 2:.1f}" y="{bottom + 36}"'
    parts.append(f'<text class="tick" {place} text-anchor="middle">file size, MB</text>')
    points = sorted(zip(rows, values, strict=True), key=lambda point: down(point[1]))
    lowest_label = -LABEL_GAP
    for row, value in points:
        x, y = across(row.megabytes), down(value)
        kind, side, anchor, label = FLOAT, -10, "end", y
        if row.widths != FLOAT:
            lowest_label = max(y, lowest_label + LABEL_GAP)
            kind, side, anchor, label = "quantized", 10, "start", lowest_label
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        place = f'x="{x + side:.1f}" y="{label + 4.5:.1f}" text-anchor="{anchor}"'
        parts.append(f'<text class="label" {place}>{row.widths}</text>')
    return parts


def ticks_around(low: float, high: float) -> list[float]:
    """Return the multiples of one half around an interval, with room on both sides."""
    first, last = int(2 * low - 0.2), int(2 * high + 0.2) + 1
    return [step / 2 for step in range(first, last + 1)]


def run_command(arguments: list[str]) -> None:
    """Run qgait-ptq.

    Raises:
        ClickException: it failed; with its message.
    """
    command = [str(Path(sys.executable).with_name("qgait-ptq")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode:
        raise click.ClickException(f"qgait-ptq {' '.join(arguments)}: {done.stderr.strip()}")


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "results", help="Result folder."
)
@click.option("--measure", is_flag=True, help="Measure file sizes first.")
def main(out: Path, measure: bool) -> None:
    """Write OUT/results.svg, and the table into its pages."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = out / "sizes.json"
    if measure or not sizes.exists():
        sizes.write_text(json.dumps(measure_sizes(), indent=1) + "\n")
    rows = read_rows(ACCURACY, sizes)
    (out / "results.svg").write_text(draw(rows))
    for page in PAGES:
        page.write_text(with_table(page.read_text(), rows))
    click.echo(table(rows))


if __name__ == "__main__":
    main()
