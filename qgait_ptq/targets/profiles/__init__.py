"""One module for each target, named like the target with underscores, with a constant ``TARGET``.

To add a target, add a module; see docs/architecture.md.
"""

from __future__ import annotations

from qgait_ptq.system.discovery import module_names


def target_names() -> list[str]:
    """Return the names of all targets without importing them, since their tables need torch."""
    return [name.replace("_", "-") for name in module_names(__path__)]
