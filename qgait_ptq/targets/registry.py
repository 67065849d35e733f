"""All targets, by name."""

from __future__ import annotations

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.discovery import find_instances
from qgait_ptq.targets import profiles
from qgait_ptq.targets.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for target in find_instances(profiles.__name__, profiles.__path__, Target)
}


def get_target(name: str) -> Target:
    """Return the target of a name.

    Raises:
        ConfigError: no target has this name.
    """
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]
