"""Settings and recipes: schemas, and YAML that others may have written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgait_ptq.system.lazy import lazy_names

if TYPE_CHECKING:
    from qgait_ptq.config.schema import BudgetConfig, FinetuneConfig, IdcConfig, LayerBits, QuantConfig
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"schema": ("BudgetConfig", "FinetuneConfig", "IdcConfig", "LayerBits", "QuantConfig")}
    )

__all__ = ["BudgetConfig", "FinetuneConfig", "IdcConfig", "LayerBits", "QuantConfig"]
