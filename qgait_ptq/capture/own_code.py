"""Settings of a model that name code, and whether this code belongs to the package."""

from __future__ import annotations

from typing import Any

from qgait_ptq.config.schema import ModelSource

CODE = ("factory", "adapter", "opengait_config")  # settings that name code to import
ZOO, OPENGAIT_ADAPTER = "qgait_ptq.gait.zoo", "opengait"


def is_built_in(setting: str, name: Any) -> bool:
    """Return whether a factory or an adapter belongs to this package, so that no other code is imported."""
    if setting == "adapter":
        return name == OPENGAIT_ADAPTER
    module, _, attribute = str(name).partition(":")
    if setting != "factory" or module != ZOO:
        return False
    from qgait_ptq.gait import zoo  # late import: it loads torch, which most calls do not need

    return attribute in zoo.__all__


def runs_code(model: ModelSource) -> bool:
    """Return whether a recipe of this model runs code that does not belong to this package."""
    named = {name: getattr(model, name) for name in CODE}
    return model.trust_code or any(value and not is_built_in(name, value) for name, value in named.items())
