"""Showing a page: in the browser, or as a path where there is none."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from pathlib import Path

from qgait_ptq.errors import ConfigError
from qgait_ptq.report.writing import write_text

# One of these names a graphical display or a browser. Without them, `webbrowser` can start a text browser,
# which takes over the terminal.
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def show_page(html: str) -> Path:
    """Open a page in the browser. Without a display, print the path of the page instead.

    The file is in a new temporary folder. It is kept, because the browser reads it later.

    Args:
        html: self-contained page.

    Returns:
        The path of the page.

    Raises:
        ConfigError: the temporary folder cannot be written.
    """
    try:
        path = Path(tempfile.mkdtemp(prefix="qgait-ptq-")) / "report.html"
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"{tempfile.gettempdir()}: the page cannot be written ({reason}); set TMPDIR to another folder"
        ) from None
    write_text(path, html)
    if not (has_display() and webbrowser.open(path.as_uri())):
        print(f"no browser can be opened here; the page is {path}")
    return path


def has_display() -> bool:
    """Return whether a browser with a window can be opened."""
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in DISPLAYS)
