"""Safe output of text from files: names of layers, files and subjects are shown, never interpreted.

Every name passes `plain`, which shows control characters and escape sequences as Python's ``repr`` does.
Cells and titles are `rich.text.Text`, so square brackets and ``:name:`` are not markup.
"""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NARROW = 72  # columns of a terminal; narrower ones cut the cells of most tables


def plain(text: object) -> str:
    r"""Return text as one line, with characters that a terminal interprets escaped.

    Example:
        >>> print(plain("layer\x1b[31m\n[bold]"))
        layer\x1b[31m\n[bold]
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def cell(text: object) -> Text:
    """Return the content or the heading of a cell of a table."""
    return Text(plain(text))


def title_text(text: object) -> Text:
    """Return the title of a table."""
    return Text(plain(text), style="table.title")


def add_row(table: Table, *values: object) -> None:
    """Add a row of text to a table."""
    table.add_row(*map(cell, values))


def write_line(console: Console, text: object) -> None:
    """Print one line of text."""
    console.print(cell(text))


def print_table(console: Console, table: Table) -> None:
    """Print a table of text. In a narrow terminal its rows become paragraphs, so that nothing is cut.

    Args:
        console: terminal or file.
        table: table of `cell` texts, whose first column names the rows.
    """
    if console.width >= NARROW:
        console.print(table)
        return
    if table.title:
        console.print(table.title)
    named, *columns = table.columns
    for name, *values in zip(named.cells, *(column.cells for column in columns), strict=True):
        entries = [f"{column.header} {value}" for column, value in zip(columns, values, strict=True)]
        console.print(name)
        console.print(Padding(Text(", ".join(entries)), (0, 0, 0, 2)))
