"""Matplotlib figures as inline SVG in the colours of the page: light, dark or print."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 5.4, 3.5  # inches; the page scales them
# Placeholder colours. They become variables of the page's style sheet, which defines the palette of Okabe and
# Ito (distinct for all common kinds of colour vision) for light and for dark pages.
INK, RULE = "#010101", "#010102"
FLOAT, QUANTIZED, FILE = "#010103", "#010104", "#010105"
SAME, DIFFERENT, WORST = "#010106", "#010107", "#010108"
VARIABLES = {
    INK: "ink",
    RULE: "rule",
    FLOAT: "float",
    QUANTIZED: "quantized",
    FILE: "file",
    SAME: "same",
    DIFFERENT: "different",
    WORST: "worst",
}
STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, small, in the page's font
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Figure:
    """A figure with its title and a reading aid.

    Attributes:
        name: id of the figure in the page.
        title: title of the figure.
        help: one line on how to read the figure.
        svg: inline SVG.
    """

    name: str
    title: str
    help: str
    svg: str


def draw(
    name: str, title: str, help_text: str, paint: Callable[[Axes], None], height: float = HEIGHT
) -> Figure:
    """Draw one figure.

    Args:
        name: id of the figure in the page; it makes ids within the SVG unique.
        title: title of the figure; screen readers read it with the help text.
        help_text: one line on how to read the figure.
        paint: function that draws on the axes.
        height: height in inches.
    """
    with _figure(name, height) as (axes, buffer):
        paint(axes)
    return Figure(name, title, help_text, _for_page(buffer.getvalue(), f"{title}. {help_text}"))


@contextmanager
def _figure(name: str, height: float) -> Iterator[tuple[Axes, io.StringIO]]:
    # Not pyplot: it holds figures and a backend for the whole process, which may use its own.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    buffer = io.StringIO()
    style: dict[Any, Any] = {**STYLE, "svg.hashsalt": name}
    with rc_context(style):
        figure = Canvas(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), buffer
        figure.savefig(buffer, format="svg", metadata={"Date": None})


def _for_page(svg: str, label: str) -> str:
    """Prepare SVG for the page: page colours, a description, no document type (it names a web address)."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label, quote=True)}" ', 1)


def standalone(figure: Figure) -> str:
    """Return the content of a standalone SVG file of a figure, in light colours."""
    svg = figure.svg
    for variable, colour in LIGHT.items():
        svg = svg.replace(f"var(--{variable})", colour)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg + "\n"


LIGHT = {
    "ink": "#1c1e21",
    "rule": "#d9dce0",
    "float": "#0072b2",
    "quantized": "#d55e00",
    "file": "#007a5a",
    "same": "#007a5a",
    "different": "#b3568d",
    "worst": "#d55e00",
}
DARK = {
    "ink": "#e6e8eb",
    "rule": "#3a3f45",
    "float": "#56b4e9",
    "quantized": "#e69f00",
    "file": "#2fc59a",
    "same": "#2fc59a",
    "different": "#e29ac4",
    "worst": "#e69f00",
}
